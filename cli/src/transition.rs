//! One line per change, for `watch` and `up`. Pure: the time zone is an argument.

use {
    crate::terminal::{Style, Terminal, visible},
    healthscope_core::view::{Change, TransitionView},
    healthscope_shared::{
        health::Health,
        name::{Namespace, ScopeKey},
        probe::outcome::ProbeState,
    },
    jiff::{Timestamp, tz::TimeZone},
};

/// Name columns: wide enough for most, and nothing is cut.
const SUBJECT_COLUMNS: usize = 20;
/// The longest pair of words, `Unhealthy → Unhealthy`, with room.
const CHANGE_COLUMNS: usize = 21;

/// Writes a change as `12:03:14  component db  Healthy → Unhealthy  ReadinessFailed: ...`.
pub(crate) fn line(transition: &TransitionView, zone: &TimeZone, terminal: Terminal) -> String {
    let TransitionView {
        id: _,
        time,
        change,
        namespace,
        kind: _,
        name,
        reason,
        message,
    } = transition;
    let prefix = prefix(namespace);
    let (subject, from, to, style, note): (String, _, _, _, _) = match change {
        Change::Scope {
            from,
            to,
            maintenance,
        } => {
            let note = if *maintenance { "in maintenance" } else { "" };
            (
                format!("scope {prefix}{name}"),
                from.as_str(),
                to.as_str(),
                Style::from(*to),
                note,
            )
        }
        Change::Component { from, to: Some(to) } => (
            format!("component {prefix}{name}"),
            from.as_str(),
            to.as_str(),
            Style::from(*to),
            "",
        ),
        Change::Component { from, to: None } => (
            format!("component {prefix}{name}"),
            from.as_str(),
            "gone",
            Style::Faint,
            "",
        ),
        Change::Probe {
            from,
            to,
            probe,
            instance,
            agent: _,
            seq: _,
        } => {
            let subject = format!("probe {prefix}{name}/{probe} on {instance}");
            (
                subject,
                from.map_or("?", ProbeState::as_str),
                to.as_str(),
                Style::from(*to),
                "",
            )
        }
    };
    let mut why = reason.as_str().to_owned();
    if !note.is_empty() {
        why = format!("{why} ({note})");
    }
    if !message.is_empty() {
        why = format!("{why}: {message}");
    }
    let change_width = from.chars().count() + " → ".chars().count() + to.chars().count();
    let change = format!("{from} → {}", terminal.paint(style, to));
    columns(*time, zone, &subject, (&change, change_width), &why, terminal)
}

/// Writes that a scope is as ill as before, for another reason.
pub(crate) fn still(
    scope: &ScopeKey,
    health: Health,
    cause: &str,
    at: Timestamp,
    zone: &TimeZone,
    terminal: Terminal,
) -> String {
    let ScopeKey { namespace, name } = scope;
    let subject = format!("scope {}{name}", prefix(namespace));
    let width = "still ".len() + health.as_str().len();
    let change = format!("still {}", terminal.health(health));
    columns(
        at,
        zone,
        &subject,
        (&change, width),
        &format!("root cause is {cause}"),
        terminal,
    )
}

/// A line: time, who, what (with its width on screen), why.
fn columns(
    time: Timestamp,
    zone: &TimeZone,
    subject: &str,
    (change, change_width): (&str, usize),
    why: &str,
    terminal: Terminal,
) -> String {
    let time = time.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string();
    let subject_gap = " ".repeat(SUBJECT_COLUMNS.saturating_sub(subject.chars().count()));
    let change_gap = " ".repeat(CHANGE_COLUMNS.saturating_sub(change_width));
    let why = visible(why).replace('\n', " ");
    let time = terminal.paint(Style::Faint, time);
    format!("{time}  {subject}{subject_gap}  {change}{change_gap}  {why}\n")
}

fn prefix(namespace: &Namespace) -> String {
    if *namespace == Namespace::default() {
        String::new()
    } else {
        format!("{namespace}/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: &str) {
        let transition: TransitionView = serde_json::from_str(json).unwrap();
        assert_eq!(
            line(
                &transition,
                &TimeZone::fixed(jiff::tz::offset(2)),
                Terminal::plain()
            ),
            expected
        );
    }

    #[test]
    fn a_change_is_one_line() {
        check(
            r#"{"id": 1, "time": "2026-01-01T10:03:14.5Z", "level": "component", "from": "Healthy", "to": "Unhealthy",
               "namespace": "default", "kind": "Component", "name": "db", "reason": "ReadinessFailed",
               "message": "readiness tcp 127.0.0.1:7582: connection\u001b refused"}"#,
            "12:03:14  component db          Healthy → Unhealthy    ReadinessFailed: readiness tcp 127.0.0.1:7582: \
             connection\\x1b refused\n",
        );
        check(
            r#"{"id": 2, "time": "2026-01-01T10:03:14Z", "level": "scope", "from": "Unhealthy", "to": "Healthy",
               "maintenance": true, "namespace": "prod", "kind": "HealthScope", "name": "shop", "reason": "AllHealthy"}"#,
            "12:03:14  scope prod/shop       Unhealthy → Healthy    AllHealthy (in maintenance)\n",
        );
        check(
            r#"{"id": 3, "time": "2026-01-01T10:03:14Z", "level": "component", "from": "Healthy",
               "namespace": "default", "kind": "Component", "name": "db", "reason": "AgentStopped"}"#,
            "12:03:14  component db          Healthy → gone         AgentStopped\n",
        );
        check(
            r#"{"id": 4, "time": "2026-01-01T10:03:14Z", "level": "probe", "from": "pending", "to": "passing",
               "probe": "readiness", "instance": "laptop", "agent": "laptop", "seq": 1,
               "namespace": "default", "kind": "Component", "name": "db", "reason": "Passing"}"#,
            "12:03:14  probe db/readiness on laptop  pending → passing      Passing\n",
        );
    }
}
