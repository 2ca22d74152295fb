//! Which objects are meant: kubectl's ways of writing types and names. Pure.

use {
    crate::failure::Failure,
    healthscope_shared::{
        document::nearest,
        name::{AgentName, Name, ProbeName},
        one_line,
    },
};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Type {
    Scopes,
    Components,
    Probes,
    Agents,
}

impl Type {
    const ALL: [Self; 4] = [Self::Scopes, Self::Components, Self::Probes, Self::Agents];

    /// Every word for it; the first is shown to people, the second is for one of them.
    const fn words(self) -> &'static [&'static str] {
        match self {
            Self::Scopes => &[
                "scopes",
                "scope",
                "health",
                "healthscope",
                "healthscopes",
                "healthscopes.core.oam.dev",
            ],
            Self::Components => &["components", "component", "comp"],
            Self::Probes => &["probes", "probe"],
            Self::Agents => &["agents", "agent"],
        }
    }

    /// `scopes`.
    pub(crate) const fn plural(self) -> &'static str {
        self.words()[0]
    }

    /// `scope`.
    pub(crate) const fn singular(self) -> &'static str {
        self.words()[1]
    }

    fn parse(word: &str) -> Result<Self, Failure> {
        let lower = word.to_lowercase();
        if let Some(found) = Self::ALL
            .into_iter()
            .find(|kind| kind.words().contains(&lower.as_str()))
        {
            return Ok(found);
        }
        let known: Vec<&str> = Self::ALL
            .into_iter()
            .flat_map(|kind| kind.words().iter().copied())
            .collect();
        let shown = one_line(word, 60);
        Err(Failure::usage(match nearest(&lower, &known) {
            Some(near) => format!("there is no type {shown:?}; did you mean {near:?}?"),
            None => {
                format!("there is no type {shown:?}; the types are scopes, components, probes and agents")
            }
        }))
    }
}

/// Some or all objects of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) kind: Type,
    /// Empty means all.
    pub(crate) names: Vec<String>,
}

impl Wanted {
    /// Whether an object is meant by its name; for a probe, `COMPONENT/PROBE`.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| covers(self.kind, wanted, name))
    }

    /// The names that none of the objects has.
    pub(crate) fn missing<'a>(&'a self, found: &[&str]) -> Vec<&'a str> {
        let is_missing = |wanted: &&String| !found.iter().any(|name| covers(self.kind, wanted, name));
        self.names.iter().filter(is_missing).map(String::as_str).collect()
    }
}

/// Whether `wanted` means `name`: the name of a component means all its probes.
fn covers(kind: Type, wanted: &str, name: &str) -> bool {
    wanted == name
        || (kind == Type::Probes
            && name
                .split_once('/')
                .is_some_and(|(component, _)| component == wanted))
}

/// Reads `TYPE NAME...`, `TYPE,TYPE` and `TYPE/NAME...`, in the order written.
pub(crate) fn parse(what: &str, names: &[String]) -> Result<Vec<Wanted>, Failure> {
    if what.contains('/') {
        let mut wanted: Vec<Wanted> = Vec::new();
        for word in std::iter::once(what).chain(names.iter().map(String::as_str)) {
            let Some((kind, name)) = word.split_once('/') else {
                return Err(Failure::usage(format!(
                    "{:?} is no TYPE/NAME; write either TYPE NAME NAME or TYPE/NAME TYPE/NAME",
                    one_line(word, 60)
                )));
            };
            let kind = Type::parse(kind)?;
            check_name(kind, name)?;
            match wanted.iter_mut().find(|known| known.kind == kind) {
                Some(known) => known.names.push(name.to_owned()),
                None => wanted.push(Wanted {
                    kind,
                    names: vec![name.to_owned()],
                }),
            }
        }
        return Ok(wanted);
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    for word in what.split(',') {
        let kind = Type::parse(word.trim())?;
        for name in names {
            check_name(kind, name)?;
        }
        if !wanted.iter().any(|known| known.kind == kind) {
            wanted.push(Wanted {
                kind,
                names: names.to_vec(),
            });
        }
    }
    Ok(wanted)
}

fn check_name(kind: Type, name: &str) -> Result<(), Failure> {
    let checked = match kind {
        Type::Scopes | Type::Components => Name::new(name).map(|_| ()),
        Type::Agents => AgentName::new(name).map(|_| ()),
        Type::Probes => match name.split_once('/') {
            None => Name::new(name).map(|_| ()),
            Some((component, probe)) => Name::new(component)
                .and_then(|_| ProbeName::new(probe))
                .map(|_| ()),
        },
    };
    checked.map_err(Failure::usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(what: &str, names: &[&str], expected: &str) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let found = match parse(what, &names) {
            Ok(wanted) => wanted
                .iter()
                .map(|wanted| format!("{}[{}]", wanted.kind.plural(), wanted.names.join(" ")))
                .collect::<Vec<_>>()
                .join(" "),
            Err(Failure::Usage(message)) => message,
            Err(other) => format!("{other:?}"),
        };
        assert!(
            found.starts_with(expected),
            "{what}: {found:?} should start with {expected:?}"
        );
    }

    #[test]
    fn types_and_names_are_written_as_for_kubectl() {
        check("scopes", &[], "scopes[]");
        check("HEALTH", &["shop", "pay"], "scopes[shop pay]");
        check("healthscopes.core.oam.dev", &[], "scopes[]");
        check("comp,agents,component", &[], "components[] agents[]");
        check(
            "scope/shop",
            &["agent/a", "scope/pay"],
            "scopes[shop pay] agents[a]",
        );
        check("probe/web/readiness", &[], "probes[web/readiness]");
        check("probes", &["web", "web/disk"], "probes[web web/disk]");
    }

    #[test]
    fn what_means_nothing_is_said() {
        check("pods", &[], "there is no type \"pods\"");
        check(
            "scops",
            &[],
            "there is no type \"scops\"; did you mean \"scopes\"?",
        );
        check("scope/shop", &["pay"], "\"pay\" is no TYPE/NAME");
        check("scopes", &["Shop"], "\"Shop\" is not a valid object name");
        check("", &[], "there is no type \"\"");
    }

    #[test]
    fn the_name_of_a_component_means_all_its_probes() {
        let wanted = Wanted {
            kind: Type::Probes,
            names: vec!["web".into(), "db/disk".into()],
        };
        for (name, expected) in [
            ("web/readiness", true),
            ("db/disk", true),
            ("db/readiness", false),
            ("web2/a", false),
        ] {
            assert_eq!(wanted.matches(name), expected, "{name}");
        }
        assert_eq!(wanted.missing(&["web/a"]), ["db/disk"]);
    }
}
