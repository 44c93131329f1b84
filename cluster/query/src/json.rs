//! `json_extract_path_text(json, key, …)`, as PostgreSQL has it: the way into `detail`, which holds what has no column.
//!
//! A text stays itself, null and what is not there are NULL, everything else is its JSON. A key of digits counts into an array. A
//! difference: what is no JSON is NULL and no error, since `detail` is what agents send, and one of them must not spoil everybody's answer.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use serde_json::Value;

/// The function.
pub(crate) fn extract_path_text() -> Arc<ScalarUDF> {
    let signature = Signature::new(TypeSignature::VariadicAny, Volatility::Immutable);
    Arc::new(ScalarUDF::from(ExtractPathText { signature }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ExtractPathText {
    signature: Signature,
}

impl ScalarUDFImpl for ExtractPathText {
    fn name(&self) -> &str {
        "json_extract_path_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let to_text = |value: &ColumnarValue| cast(&value.to_array(rows)?, &DataType::Utf8).map_err(DataFusionError::from);
        let texts = args.args.iter().map(to_text).collect::<Result<Vec<ArrayRef>>>()?;
        let texts: Vec<&StringArray> = texts.iter().map(|array| array.as_string::<i32>()).collect();
        let Some((json, keys)) = texts.split_first() else {
            return Err(DataFusionError::Plan("json_extract_path_text takes a JSON text and keys".to_owned()));
        };
        let known = |array: &StringArray, row: usize| array.is_valid(row).then(|| array.value(row).to_owned());
        let of = |row: usize| {
            let path: Option<Vec<String>> = keys.iter().map(|key| known(key, row)).collect();
            extract(known(json, row)?.as_str(), &path?)
        };
        let found: StringArray = (0..rows).map(of).collect();
        Ok(ColumnarValue::Array(Arc::new(found)))
    }
}

fn extract(json: &str, path: &[String]) -> Option<String> {
    let value: Value = serde_json::from_str(json).ok()?;
    let found = path.iter().try_fold(&value, |value, key| match value {
        Value::Object(fields) => fields.get(key),
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        _ => None,
    })?;
    match found {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_their_path() {
        let json = r#"{"a":{"b":[1,"two",null]},"t":true,"s":"x"}"#;
        for (path, expected) in [
            (&["s"][..], Some("x")),
            (&["t"], Some("true")),
            (&["a", "b", "0"], Some("1")),
            (&["a", "b", "1"], Some("two")),
            (&["a", "b", "2"], None),
            (&["a", "b", "9"], None),
            (&["a", "b"], Some(r#"[1,"two",null]"#)),
            (&["a", "c"], None),
            (&["s", "x"], None),
        ] {
            let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
            assert_eq!(extract(json, &path).as_deref(), expected, "{path:?}");
        }
        assert_eq!(extract("{", &["a".to_owned()]), None);
        assert_eq!(extract("[[[", &[]), None);
    }
}
