//! One column of CSV records: its type, and its fields as an array.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, Int64Array, StringArray, UInt32Array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, UInt32Type};

use super::fields::Records;
use super::texts::Dictionary;

/// What a CSV column may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Integers of 64 bits.
    BigInt,
    /// Floating point of 64 bits.
    Double,
    /// `true` or `false`.
    Boolean,
    /// RFC 3339; without a zone it is UTC.
    Timestamp,
    /// Anything else.
    Text,
}

impl ColumnType {
    const ALL: [(Self, &'static str); 5] = [
        (Self::BigInt, "bigint"),
        (Self::Double, "double"),
        (Self::Boolean, "boolean"),
        (Self::Timestamp, "timestamp"),
        (Self::Text, "text"),
    ];

    /// The type between operators.
    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::BigInt => DataType::Int64,
            Self::Double => DataType::Float64,
            Self::Boolean => DataType::Boolean,
            Self::Timestamp => weir_plan::time_type(),
            Self::Text => weir_plan::text_type(),
        }
    }

    pub(super) fn of(data_type: &DataType) -> Self {
        Self::ALL.into_iter().map(|(column, _)| column).find(|column| column.data_type() == *data_type).unwrap_or(Self::Text)
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(column, _)| *column == self).map_or("text", |(_, name)| name)
    }

    /// The narrowest type that all fields of a sample fit.
    pub(super) fn guess(records: &Records, width: usize, field: usize) -> Self {
        let texts: Vec<&str> = (0..records.len(width))
            .filter_map(|record| {
                let (start, end) = records.field(width, record, field);
                std::str::from_utf8(&records.bytes[start..end]).ok()
            })
            .filter(|text| !text.is_empty())
            .collect();
        // Leading zeros and pluses say that it is a name.
        let is_name = |text: &&str| text.starts_with('+') || (text.len() > 1 && text.starts_with('0') && !text.starts_with("0."));
        if texts.is_empty() || texts.iter().any(is_name) {
            return Self::Text;
        }
        let all = |fits: &dyn Fn(&str) -> bool| texts.iter().all(|text| fits(text));
        let has_digit = |text: &str| text.bytes().any(|byte| byte.is_ascii_digit());
        if all(&|text| text.parse::<i64>().is_ok()) {
            Self::BigInt
        } else if all(&|text| has_digit(text) && text.parse::<f64>().is_ok()) {
            Self::Double
        } else if all(&|text| ["true", "false"].contains(&text)) {
            Self::Boolean
        } else if all(&|text| text.len() >= DATE_LEN && has_digit(text)) && Self::Timestamp.casts(&texts) {
            Self::Timestamp
        } else {
            Self::Text
        }
    }

    fn casts(self, texts: &[&str]) -> bool {
        let column: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        cast(&column, &self.data_type()).is_ok_and(|found| found.null_count() == 0)
    }
}

impl std::str::FromStr for ColumnType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(_, known)| known.eq_ignore_ascii_case(name));
        let names = || Self::ALL.map(|(_, known)| known).join(", ");
        found.map(|(column, _)| column).ok_or_else(|| format!("\"{name}\" is no type: give one of {}", names()))
    }
}

/// A record and what is wrong with it.
pub(super) type Unfit = (usize, String);

/// The fields of one column.
pub(super) struct Column<'a> {
    pub(super) records: &'a Records,
    pub(super) width: usize,
    pub(super) field: usize,
    pub(super) name: &'a str,
}

impl Column<'_> {
    pub(super) fn array(&self, kind: ColumnType, texts: &mut Dictionary) -> Result<ArrayRef, Unfit> {
        match kind {
            ColumnType::BigInt => self.integers(),
            ColumnType::Text => self.texts(texts),
            ColumnType::Double | ColumnType::Boolean | ColumnType::Timestamp => self.cast(kind),
        }
    }

    fn len(&self) -> usize {
        self.records.len(self.width)
    }

    fn bounds(&self, record: usize) -> (usize, usize) {
        self.records.field(self.width, record, self.field)
    }

    fn bytes(&self, record: usize) -> &[u8] {
        let (start, end) = self.bounds(record);
        &self.records.bytes[start..end]
    }

    fn integers(&self) -> Result<ArrayRef, Unfit> {
        let mut nulls = vec![];
        let mut values = Vec::with_capacity(self.len());
        for record in 0..self.len() {
            let bytes = self.bytes(record);
            values.push(match integer(bytes) {
                Some(value) => value,
                None if bytes.is_empty() => {
                    nulls.push(record);
                    0
                }
                None => return Err(self.unfit(record, ColumnType::BigInt)),
            });
        }
        Ok(Arc::new(Int64Array::new(values.into(), validity(self.len(), &nulls))))
    }

    fn texts(&self, texts: &mut Dictionary) -> Result<ArrayRef, Unfit> {
        texts.renew_if_large();
        let mut nulls = vec![];
        let mut codes = Vec::with_capacity(self.len());
        for record in 0..self.len() {
            let (start, end) = self.bounds(record);
            if start == end && !self.records.empty.contains(&(record * self.width + self.field)) {
                nulls.push(record);
                codes.push(0);
                continue;
            }
            let code = if start == end { texts.empty() } else { texts.code(&self.records.bytes, start, end) };
            codes.push(code.map_err(|_| (record, format!("column \"{}\" is not UTF-8: convert the file", self.name)))?);
        }
        let codes = UInt32Array::new(codes.into(), validity(self.len(), &nulls));
        Ok(Arc::new(DictionaryArray::<UInt32Type>::new(codes, texts.array())))
    }

    fn cast(&self, kind: ColumnType) -> Result<ArrayRef, Unfit> {
        let field = |record: usize| std::str::from_utf8(self.bytes(record)).map(|text| (!text.is_empty()).then_some(text));
        let fields = (0..self.len()).map(|record| field(record).unwrap_or(Some("\u{fffd}")));
        let texts: ArrayRef = Arc::new(fields.collect::<StringArray>());
        let made = cast(&texts, &kind.data_type());
        let made = made.map_err(|why| (0, format!("column \"{}\": {why}", self.name)))?;
        match (0..self.len()).find(|&record| made.is_null(record) && texts.is_valid(record)) {
            None => Ok(made),
            Some(record) => Err(self.unfit(record, kind)),
        }
    }

    fn unfit(&self, record: usize, kind: ColumnType) -> Unfit {
        let found: String = String::from_utf8_lossy(self.bytes(record)).chars().take(SHOWN_MAX).collect();
        let (name, kind) = (self.name, kind.name());
        let why = format!(
            "column \"{name}\" is {kind}, as its first rows are, and \"{found}\" is none: declare another type, such as {name}=text"
        );
        (record, why)
    }
}

/// The validity of rows of which these are NULL.
fn validity(len: usize, nulls: &[usize]) -> Option<NullBuffer> {
    if nulls.is_empty() {
        return None;
    }
    let mut valid = vec![true; len];
    nulls.iter().for_each(|&row| valid[row] = false);
    Some(NullBuffer::new(BooleanBuffer::from(valid)))
}

/// A whole number; nothing where it is none or does not fit.
fn integer(bytes: &[u8]) -> Option<i64> {
    // So many digits fit, whichever they are.
    if bytes.is_empty() || bytes.len() > 18 || !bytes[0].is_ascii_digit() {
        return std::str::from_utf8(bytes).ok().filter(|text| !text.starts_with('+'))?.parse().ok();
    }
    let (mut value, mut wrong) = (0_i64, 0_u8);
    let (eights, rest) = bytes.as_chunks::<8>();
    for eight in eights {
        let digits = u64::from_le_bytes(*eight) ^ 0x3030_3030_3030_3030;
        wrong |= u8::from((digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080 != 0);
        let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8) & 0x00ff_00ff_00ff_00ff;
        let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
        let all = fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff;
        value = value * 100_000_000 + all as i64;
    }
    for byte in rest {
        let digit = byte.wrapping_sub(b'0');
        wrong |= u8::from(digit > 9);
        value = value * 10 + i64::from(digit);
    }
    (wrong == 0).then_some(value)
}

/// A date is ten letters long.
const DATE_LEN: usize = 10;
/// So much of a field is shown in an error.
const SHOWN_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_are_read_as_rust_reads_them(value in any::<i64>(), shift in 0_u32..63, text in "[0-9x/:-]{0,20}") {
            let value = value >> shift;
            prop_assert_eq!(integer(value.to_string().as_bytes()), Some(value));
            prop_assert_eq!(integer(text.as_bytes()), text.parse().ok());
        }
    }

    #[test]
    fn types_are_guessed_and_named() {
        let guess = |field: &str| {
            let mut records = Records::default();
            records.take(field.as_bytes().to_vec(), 1, true).unwrap();
            ColumnType::guess(&records, 1, 0)
        };
        for (fields, expected) in [
            ("1\n-7\n", ColumnType::BigInt),
            ("1\n0.5\n1e9", ColumnType::Double),
            ("true\nfalse", ColumnType::Boolean),
            ("2026-01-02T03:04:05Z\n2026-01-02", ColumnType::Timestamp),
            ("007\n12", ColumnType::Text),
            ("inf", ColumnType::Text),
            ("1\na", ColumnType::Text),
        ] {
            assert_eq!(guess(fields), expected, "{fields}");
        }
        assert_eq!("TEXT".parse(), Ok(ColumnType::Text));
        assert!("int".parse::<ColumnType>().unwrap_err().contains("bigint"));
        assert!(
            ColumnType::of(&weir_plan::text_type()) == ColumnType::Text
                && ColumnType::of(&DataType::Float64) == ColumnType::Double
        );
    }
}
