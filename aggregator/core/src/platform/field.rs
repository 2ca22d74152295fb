//! Lenient access to the fields of an object: what is absent or of another type is not there, and never an error.

use {jiff::Timestamp, serde_json::Value};

/// The value at `path`.
pub(super) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, &field| value.get(field))
}

/// The text at `path`.
pub(super) fn text<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path)?.as_str()
}

/// The whole number at `path`.
pub(super) fn number(value: &Value, path: &[&str]) -> Option<i64> {
    at(value, path)?.as_i64()
}

/// The number of things at `path`; none when it is absent or negative.
pub(super) fn count(value: &Value, path: &[&str]) -> u32 {
    optional_count(value, path).unwrap_or(0)
}

/// The number of things at `path`, if any is said; a negative one is none.
pub(super) fn optional_count(value: &Value, path: &[&str]) -> Option<u32> {
    Some(u32::try_from(number(value, path)?.max(0)).unwrap_or(u32::MAX))
}

/// The time at `path`.
pub(super) fn time(value: &Value, path: &[&str]) -> Option<Timestamp> {
    text(value, path)?.parse().ok()
}

/// Whether `path` says true.
pub(super) fn flag(value: &Value, path: &[&str]) -> bool {
    at(value, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The items at `path`.
pub(super) fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The condition of this type in `status.conditions`.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, &["status", "conditions"])
        .iter()
        .find(|condition| text(condition, &["type"]) == Some(kind))
}

/// The condition of this type, where its status is `status`.
pub(super) fn condition_that_is<'a>(object: &'a Value, kind: &str, status: &str) -> Option<&'a Value> {
    condition(object, kind).filter(|condition| text(condition, &["status"]) == Some(status))
}

/// Whether the object's controller has seen its newest spec: `None` when the object does not say.
pub(super) fn is_observed(object: &Value) -> Option<bool> {
    let observed = number(object, &["status", "observedGeneration"])?;
    let generation = number(object, &["metadata", "generation"]).unwrap_or(0);
    Some(observed >= generation)
}

/// FNV-1a of the JSON: the same for as long as the API server sends the same, whatever release of ours reads it.
pub(super) fn digest(value: Option<&Value>) -> u64 {
    let text = value.map(Value::to_string).unwrap_or_default();
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
