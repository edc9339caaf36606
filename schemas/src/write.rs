//! Documents out, as YAML and JSON: what `get -o yaml` prints and `apply` stores. What is written is admitted again and
//! equal; keys come as `apiVersion`, `kind`, `metadata`, `spec`, and by name within these; defaults are left out.

use serde_json::Value;

use crate::kinds::Document;

/// A document could not be written; it holds something that YAML cannot carry.
#[derive(Debug, thiserror::Error)]
#[error("write a document as YAML")]
pub struct WriteError(#[source] serde_saphyr::ser::Error);

/// One YAML document, ending in a line break.
///
/// # Errors
/// A text that YAML cannot carry.
pub fn yaml(document: &Document) -> Result<String, WriteError> {
    yaml_value(&document.to_value())
}

/// Several YAML documents, with `---` between them.
///
/// # Errors
/// A text that YAML cannot carry.
pub fn yaml_all<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Result<String, WriteError> {
    let texts: Result<Vec<String>, WriteError> = documents.into_iter().map(yaml).collect();
    Ok(texts?.join("---\n"))
}

/// Any JSON value as YAML: for statuses and other records.
///
/// # Errors
/// A text that YAML cannot carry.
pub fn yaml_value(value: &Value) -> Result<String, WriteError> {
    let options = serde_saphyr::ser_options! {
        indent_step: 2,
        prefer_block_scalars: false,
        yaml_12: false,
    };
    let mut text = serde_saphyr::to_string_with_options(value, options).map_err(WriteError)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// One JSON document on several lines, ending in a line break.
#[must_use]
pub fn json(document: &Document) -> String {
    format!("{:#}\n", document.to_value())
}

/// One JSON document on one line, as it is stored.
#[must_use]
pub fn json_line(document: &Document) -> String {
    document.to_value().to_string()
}
