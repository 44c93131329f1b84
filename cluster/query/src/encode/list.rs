//! Arrays as PostgreSQL writes and sends them.
//!
//! ```text
//! i32 dimensions (0 or 1) · i32 has NULLs · i32 element type · [i32 length · i32 lower bound 1] · (i32 bytes, −1 for NULL · bytes)*
//! ```

use arrow::array::{Array, ListArray};
use pgwire::api::Type;

use super::Column;

/// The array type of an element's type; None where there is none here.
pub(super) fn type_of(element: &Type) -> Option<Type> {
    Some(match *element {
        Type::BOOL => Type::BOOL_ARRAY,
        Type::INT2 => Type::INT2_ARRAY,
        Type::INT4 => Type::INT4_ARRAY,
        Type::INT8 => Type::INT8_ARRAY,
        Type::FLOAT4 => Type::FLOAT4_ARRAY,
        Type::FLOAT8 => Type::FLOAT8_ARRAY,
        Type::NUMERIC => Type::NUMERIC_ARRAY,
        Type::TIMESTAMPTZ => Type::TIMESTAMPTZ_ARRAY,
        Type::TIMESTAMP => Type::TIMESTAMP_ARRAY,
        Type::DATE => Type::DATE_ARRAY,
        Type::TEXT => Type::TEXT_ARRAY,
        _ => return None,
    })
}

/// The places of a row's elements among all elements.
pub(super) fn places(lists: &ListArray, row: usize) -> std::ops::Range<usize> {
    let bounds = lists.value_offsets();
    usize::try_from(bounds[row]).unwrap_or(0)..usize::try_from(bounds[row + 1]).unwrap_or(0)
}

/// `{a,"b c",NULL}`.
pub(super) fn text(lists: &ListArray, elements: &Column, row: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    for (nth, place) in places(lists, row).enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        if elements.array().is_null(place) {
            out.extend_from_slice(b"NULL");
            continue;
        }
        let mut value = Vec::new();
        elements.text(place, &mut value);
        let plain = !value.is_empty()
            && !value.eq_ignore_ascii_case(b"null")
            && !value.iter().any(|byte| b"{}\",\\".contains(byte) || byte.is_ascii_whitespace());
        if plain {
            out.extend_from_slice(&value);
        } else {
            out.push(b'"');
            for byte in value {
                if matches!(byte, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(byte);
            }
            out.push(b'"');
        }
    }
    out.push(b'}');
}

pub(super) fn binary(lists: &ListArray, elements: &Column, element: &Type, row: usize, out: &mut Vec<u8>) {
    let places = places(lists, row);
    let nulls = places.clone().any(|place| elements.array().is_null(place));
    out.extend_from_slice(&i32::from(!places.is_empty()).to_be_bytes());
    out.extend_from_slice(&i32::from(nulls).to_be_bytes());
    out.extend_from_slice(&element.oid().to_be_bytes());
    if places.is_empty() {
        return;
    }
    out.extend_from_slice(&(places.len() as i32).to_be_bytes());
    out.extend_from_slice(&1_i32.to_be_bytes());
    for place in places {
        if elements.array().is_null(place) {
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            continue;
        }
        let mut value = Vec::new();
        elements.binary(place, &mut value);
        out.extend_from_slice(&(value.len() as i32).to_be_bytes());
        out.extend_from_slice(&value);
    }
}
