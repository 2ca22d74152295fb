//! Whole objects as JSON and YAML.

use serde::Serialize;

/// Indented JSON with a line end.
pub(crate) fn json(object: &impl Serialize) -> String {
    let mut text =
        serde_json::to_string_pretty(object).expect("our objects have text keys and no broken numbers");
    text.push('\n');
    text
}

/// One line of JSON.
pub(crate) fn json_line(object: &impl Serialize) -> String {
    let mut text = serde_json::to_string(object).expect("our objects have text keys and no broken numbers");
    text.push('\n');
    text
}

/// YAML that reads back as what [`json`] gives.
pub(crate) fn yaml(object: &impl Serialize) -> String {
    let value = serde_json::to_value(object).expect("our objects have text keys and no broken numbers");
    let mut text = serde_saphyr::to_string(&value).expect("JSON can be written as YAML");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_reads_back_as_what_it_was() {
        let object = serde_json::json!({
            "text": "a: b\n# no", "number": 3, "yes": "yes", "empty": [], "none": null, "list": [{"a": "1"}, "~"],
            "control": "\u{1b}[31m", "trailing": "x ",
        });
        let read: serde_json::Value = serde_saphyr::from_str(&yaml(&object)).unwrap();
        assert_eq!(read, object);
    }
}
