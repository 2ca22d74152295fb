//! YAML whose fields stay in the order in which they were written.
//!
//! Read as kubectl reads it: octal numbers with a leading zero, `yes` and `no`, as in YAML 1.1.

use {
    serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{self, MapAccess, SeqAccess},
        ser::{SerializeMap, SerializeSeq},
    },
    serde_json::{Map, Number, Value},
    std::fmt,
};

/// Most parser events of a document, about two for each value.
const MAX_EVENTS: usize = 1_000_000;
/// Most events that aliases may expand to.
const MAX_ALIAS_EVENTS: usize = 20_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// A value of YAML.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ordered {
    /// Neither a list nor a mapping.
    Scalar(Value),
    /// A list.
    List(Vec<Self>),
    /// A mapping, in its order.
    Map(Vec<(String, Self)>),
}

impl Ordered {
    /// Reads one document.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_events: MAX_EVENTS, max_depth: MAX_DEPTH },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
            legacy_octal_numbers: true,
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let error = error.without_snippet().to_string();
            healthscope_shared::one_line(&error, 200)
        })
    }

    /// The document as text.
    pub(super) fn write(&self) -> String {
        let mut text = serde_saphyr::to_string(self).expect("text keys, and no broken numbers");
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// The same without the order of fields.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(fields) => {
                let fields = fields.iter().map(|(key, value)| (key.clone(), value.to_json()));
                Value::Object(Map::from_iter(fields))
            }
        }
    }

    /// `after` in the order of this one; what is new stands behind, named things first by their name.
    pub(super) fn with(&self, after: &Value) -> Self {
        match (self, after) {
            (Self::Map(fields), Value::Object(after)) => {
                let kept = fields
                    .iter()
                    .filter_map(|(key, before)| Some((key.clone(), before.with(after.get(key)?))));
                let is_new = |key: &&String| fields.iter().all(|(old, _)| old != *key);
                let mut added: Vec<&String> = after.keys().filter(is_new).collect();
                added.sort_by_key(|key| (key.as_str() != "name", key.as_str()));
                let added = added
                    .into_iter()
                    .map(|key| (key.clone(), Self::new(&after[key.as_str()])));
                Self::Map(kept.chain(added).collect())
            }
            (Self::List(before), Value::Array(after)) => {
                // Named things are found by their name, others by their place.
                let find = |place: usize, item: &Value| match item["name"].as_str() {
                    Some(name) => before.iter().find(|old| old.name() == Some(name)),
                    None => before.get(place),
                };
                let items = after
                    .iter()
                    .enumerate()
                    .map(|(place, item)| match find(place, item) {
                        Some(old) => old.with(item),
                        None => Self::new(item),
                    });
                Self::List(items.collect())
            }
            (_, after) => Self::new(after),
        }
    }

    /// Something that nobody wrote, in an order that people are used to.
    fn new(value: &Value) -> Self {
        Self::Map(Vec::new()).filled(value)
    }

    fn filled(self, value: &Value) -> Self {
        match value {
            Value::Object(_) => self.with(value),
            Value::Array(items) => Self::List(items.iter().map(Self::new).collect()),
            scalar => Self::Scalar(scalar.clone()),
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Map(fields) => fields.iter().find_map(|(key, value)| match value {
                Self::Scalar(Value::String(name)) if key == "name" => Some(name.as_str()),
                _ => None,
            }),
            Self::Scalar(_) | Self::List(_) => None,
        }
    }
}

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scalar(value) => value.serialize(serializer),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Self::Map(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Ordered, E> {
                let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
                Ok(Ordered::Scalar(number.into()))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(value.into()))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(Value::Null))
            }

            fn visit_none<E: de::Error>(self) -> Result<Ordered, E> {
                Ok(Ordered::Scalar(Value::Null))
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Ordered, D::Error> {
                Ordered::deserialize(deserializer)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ordered, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Ordered::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Ordered::Map(fields))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use {super::*, serde_json::json};

    #[test]
    fn values_are_read_as_kubectl_reads_them_and_written_so_that_it_reads_the_same() {
        let text = "z: 0644\na: yes\nm: '0644'\nk: \"yes\"\ne: 1e3\nf: '1e3'\nnull_: ~\nl: [x, {b: 1, a: 2}]\n\
                    d: 2026-01-02\nt: |\n  a\n  b: $(c)\nw: ' x '\nv: '1_000'\no: '0x1f'\n\"y\": 'y'\nempty: ''\nq: 'off'\n\
                    s: '~'\nr: '12:30'\nm2: {}\nl2: []\nbig: 9223372036854775807\n";
        let read = Ordered::read(text).unwrap();
        let json = read.to_json();
        assert_eq!(json["z"], 420);
        assert_eq!(json["a"], true);
        assert_eq!(json["m"], "0644");
        assert_eq!(json["k"], "yes");
        assert_eq!(json["d"], "2026-01-02");
        let written = read.write();
        assert_eq!(Ordered::read(&written).unwrap(), read, "{written}");
        // Texts that another reader might take for something else are in quotes.
        for line in [
            "m: \"0644\"",
            "k: \"yes\"",
            "f: \"1e3\"",
            "q: \"off\"",
            "s: \"~\"",
            "o: \"0x1f\"",
        ] {
            assert!(written.replace('\'', "\"").contains(line), "{line} in {written}");
        }
    }

    #[test]
    fn fields_keep_their_order_and_new_ones_stand_behind() {
        let before = Ordered::read("{kind: A, b: {z: 1, a: 2}, list: [{name: x, k: 1}, {name: w}]}").unwrap();
        let mut after = before.to_json();
        after["b"]["m"] = 3.into();
        after["list"] = json!([{"name": "new", "a": 1}, {"name": "x", "k": 1, "b": 2}, {"name": "w"}]);
        after["c"] = json!({"z": 1, "name": "c", "a": 1});
        let text = before.with(&after).write();
        let found: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            found.join(" | "),
            "kind: A | b: | z: 1 | a: 2 | m: 3 | list: | - name: new | a: 1 | - name: x | k: 1 | b: 2 | - name: w | \
             c: | name: c | a: 1 | z: 1"
        );
    }
}
