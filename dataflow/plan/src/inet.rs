//! Addresses in SQL: PostgreSQL's operators and functions of `inet` and `cidr` over text.
//!
//! Columns of addresses are text, in the one form that `std::net` writes, so equality, keys and joins are those of text. `<<=`, `<<`, `>>=`, `>>` and
//! `&&` between two texts read them as addresses with an optional `/length` (an IPv4 address inside IPv6 is IPv4), as do `host`,
//! `masklen`, `family`, `network`, `broadcast` and `netmask`; `inet` and `cidr` are names of the type text. Between other types the
//! operators are what they were. A text that is no address fails for its row. Semantics: PostgreSQL 15, "Network Address Functions and Operators".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int32Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion_common::{DFSchema, DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, TypePlanner};
use datafusion_expr::{ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion_sql::sqlparser::ast::{BinaryOperator, DataType as SqlType};

/// All functions over addresses, those of the operators among them.
pub fn inet_functions() -> Vec<Arc<ScalarUDF>> {
    let all = [
        Inet::ContainedOrEqual,
        Inet::Contained,
        Inet::ContainsOrEqual,
        Inet::Contains,
        Inet::Overlaps,
        Inet::Host,
        Inet::Masklen,
        Inet::Family,
        Inet::Network,
        Inet::Broadcast,
        Inet::Netmask,
    ];
    all.into_iter().map(|function| Arc::new(function.udf())).collect()
}

/// Makes the operators calls of these functions, and `inet` and `cidr` text.
#[derive(Debug, Default)]
pub struct InetPlanner;

impl ExprPlanner for InetPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match &expr.op {
            BinaryOperator::PGBitwiseShiftLeft => Inet::Contained,
            BinaryOperator::PGBitwiseShiftRight => Inet::Contains,
            BinaryOperator::PGOverlap => Inet::Overlaps,
            BinaryOperator::Custom(op) if op == "<<=" => Inet::ContainedOrEqual,
            BinaryOperator::Custom(op) if op == ">>=" => Inet::ContainsOrEqual,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        if !is_text(&expr.left.get_type(schema)?) || !is_text(&expr.right.get_type(schema)?) {
            return Ok(PlannerResult::Original(expr));
        }
        let call = ScalarFunction::new_udf(Arc::new(function.udf()), vec![expr.left, expr.right]);
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }
}

impl TypePlanner for InetPlanner {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        Ok(is_inet(sql_type).then(|| Arc::new(Field::new("", DataType::Utf8, true))))
    }
}

/// Whether a type of SQL is one of addresses.
pub(crate) fn is_inet(sql_type: &SqlType) -> bool {
    match sql_type {
        SqlType::Custom(name, parameters) => {
            parameters.is_empty() && ["inet", "cidr"].contains(&name.to_string().to_ascii_lowercase().as_str())
        }
        _ => false,
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// A function over addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Inet {
    ContainedOrEqual,
    Contained,
    ContainsOrEqual,
    Contains,
    Overlaps,
    Host,
    Masklen,
    Family,
    Network,
    Broadcast,
    Netmask,
}

impl Inet {
    fn udf(self) -> ScalarUDF {
        ScalarUDF::new_from_impl(Function { function: self, signature: Signature::any(self.arity(), Volatility::Immutable) })
    }

    fn arity(self) -> usize {
        match self {
            Self::ContainedOrEqual | Self::Contained | Self::ContainsOrEqual | Self::Contains | Self::Overlaps => 2,
            _ => 1,
        }
    }

    fn of_two(self, left: Net, right: Net) -> bool {
        match self {
            Self::ContainedOrEqual => right.contains(left),
            Self::Contained => right.contains(left) && right.length < left.length,
            Self::ContainsOrEqual => left.contains(right),
            Self::Contains => left.contains(right) && left.length < right.length,
            _ => left.contains(right) || right.contains(left),
        }
    }

    fn text(self, net: Net) -> String {
        match self {
            Self::Host => net.address.to_string(),
            Self::Network => format!("{}/{}", net.filled(false), net.length),
            Self::Broadcast => Net { address: net.filled(true), ..net }.shown(),
            _ => net.mask().to_string(),
        }
    }
}

/// As DataFusion calls it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    function: Inet,
    signature: Signature,
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        match self.function {
            Inet::ContainedOrEqual => "inet_contained_or_equal",
            Inet::Contained => "inet_contained",
            Inet::ContainsOrEqual => "inet_contains_or_equal",
            Inet::Contains => "inet_contains",
            Inet::Overlaps => "inet_overlaps",
            Inet::Host => "host",
            Inet::Masklen => "masklen",
            Inet::Family => "family",
            Inet::Network => "network",
            Inet::Broadcast => "broadcast",
            Inet::Netmask => "netmask",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        if let Some(wrong) = args.iter().find(|arg| !is_text(arg)) {
            return plan_err!("{}() takes addresses as text, not {wrong}", self.name());
        }
        Ok(match self.function {
            Inet::Masklen | Inet::Family => DataType::Int32,
            _ if self.function.arity() == 2 => DataType::Boolean,
            _ => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { args.number_rows };
        let nets = args.args.iter().map(Nets::of).collect::<Result<Vec<_>>>()?;
        let function = self.function;
        let array: ArrayRef = match (nets.as_slice(), function) {
            ([left, right], _) => {
                let pair = |row: usize| Ok(left.at(row)?.zip(right.at(row)?).map(|(left, right)| function.of_two(left, right)));
                Arc::new((0..rows).map(pair).collect::<Result<BooleanArray>>()?)
            }
            ([net], Inet::Masklen) => {
                Arc::new((0..rows).map(|row| Ok(net.at(row)?.map(|net| i32::from(net.length)))).collect::<Result<Int32Array>>()?)
            }
            ([net], Inet::Family) => {
                let family = |net: Net| if net.address.is_ipv4() { 4 } else { 6 };
                Arc::new((0..rows).map(|row| Ok(net.at(row)?.map(family))).collect::<Result<Int32Array>>()?)
            }
            ([net], _) => {
                let text = |row: usize| Ok(net.at(row)?.map(|net| function.text(net)));
                Arc::new((0..rows).map(text).collect::<Result<StringArray>>()?)
            }
            _ => return exec_err!("{}() takes {} arguments", self.name(), function.arity()),
        };
        match scalar {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)),
            false => Ok(ColumnarValue::Array(array)),
        }
    }
}

/// An argument: the same for all rows, or a text for each.
enum Nets {
    One(Option<Net>),
    Each(StringArray),
}

impl Nets {
    fn of(value: &ColumnarValue) -> Result<Self> {
        match value {
            ColumnarValue::Scalar(value) => match value.cast_to(&DataType::Utf8)? {
                ScalarValue::Utf8(Some(text)) => Ok(Self::One(Some(Net::parse(&text)?))),
                _ => Ok(Self::One(None)),
            },
            ColumnarValue::Array(array) => {
                let texts = cast(array, &DataType::Utf8)?;
                Ok(Self::Each(StringArray::from(texts.to_data())))
            }
        }
    }

    fn at(&self, row: usize) -> Result<Option<Net>> {
        match self {
            Self::One(net) => Ok(*net),
            Self::Each(texts) if texts.is_null(row) => Ok(None),
            Self::Each(texts) => Net::parse(texts.value(row)).map(Some),
        }
    }
}

/// An address and how many of its leading bits name a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Net {
    address: IpAddr,
    length: u8,
}

impl Net {
    fn parse(text: &str) -> Result<Self> {
        Self::read(text.trim()).ok_or_else(|| {
            let cure = "an address is like 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32";
            DataFusionError::Execution(format!("invalid input syntax for type inet: \"{text}\"; {cure}"))
        })
    }

    fn read(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let length = length.unwrap_or_else(|| bits(address));
        if length > bits(address) {
            return None;
        }
        match (address.to_canonical(), address) {
            (IpAddr::V4(inside), IpAddr::V6(_)) if length >= 96 => Some(Self { address: inside.into(), length: length - 96 }),
            _ => Some(Self { address, length }),
        }
    }

    /// Whether all of `other` is in this.
    fn contains(self, other: Self) -> bool {
        self.address.is_ipv4() == other.address.is_ipv4()
            && self.length <= other.length
            && self.filled(false) == Self { length: self.length, ..other }.filled(false)
    }

    /// The address with all bits behind the network's set or unset.
    fn filled(self, set: bool) -> IpAddr {
        match (self.address, self.mask()) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => {
                let (address, mask) = (address.to_bits(), mask.to_bits());
                Ipv4Addr::from_bits(if set { address | !mask } else { address & mask }).into()
            }
            (IpAddr::V6(address), IpAddr::V6(mask)) => {
                let (address, mask) = (address.to_bits(), mask.to_bits());
                Ipv6Addr::from_bits(if set { address | !mask } else { address & mask }).into()
            }
            (address, _) => address,
        }
    }

    fn mask(self) -> IpAddr {
        let length = u32::from(self.length);
        match self.address {
            IpAddr::V4(_) => Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - length).unwrap_or(0)).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(u128::MAX.checked_shl(128 - length).unwrap_or(0)).into(),
        }
    }

    /// As PostgreSQL writes it: the length only where it says something.
    fn shown(self) -> String {
        match self.length == bits(self.address) {
            true => self.address.to_string(),
            false => format!("{}/{}", self.address, self.length),
        }
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net {
        Net::read(text).unwrap()
    }

    /// The answers are PostgreSQL 15's.
    #[test]
    fn operators_answer_as_those_of_postgresql() {
        let cases = [
            ("10.1.2.3", "10.0.0.0/8", [true, true, false, false, true]),
            ("10.0.0.0/8", "10.0.0.0/8", [true, false, true, false, true]),
            ("10.0.0.0/8", "10.1.0.0/16", [false, false, true, true, true]),
            ("192.168.1.7", "192.168.1.7", [true, false, true, false, true]),
            ("192.168.1.7/24", "192.168.1.0/24", [true, false, true, false, true]),
            ("11.0.0.1", "10.0.0.0/8", [false; 5]),
            ("::1", "10.0.0.0/8", [false; 5]),
            ("2001:db8::7", "2001:db8::/32", [true, true, false, false, true]),
            ("1.2.3.4", "0.0.0.0/0", [true, true, false, false, true]),
            ("::1", "::/0", [true, true, false, false, true]),
        ];
        let functions = [Inet::ContainedOrEqual, Inet::Contained, Inet::ContainsOrEqual, Inet::Contains, Inet::Overlaps];
        for (left, right, expected) in cases {
            assert_eq!(functions.map(|function| function.of_two(net(left), net(right))), expected, "{left} {right}");
        }
    }

    #[test]
    fn functions_answer_as_those_of_postgresql() {
        let cases = [
            ("192.168.1.5/24", ["192.168.1.5", "192.168.1.0/24", "192.168.1.255/24", "255.255.255.0"]),
            ("10.0.0.1", ["10.0.0.1", "10.0.0.1/32", "10.0.0.1", "255.255.255.255"]),
            ("2001:db8::5/32", ["2001:db8::5", "2001:db8::/32", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/32", "ffff:ffff::"]),
        ];
        for (text, expected) in cases {
            let functions = [Inet::Host, Inet::Network, Inet::Broadcast, Inet::Netmask];
            assert_eq!(functions.map(|function| function.text(net(text))), expected, "{text}");
        }
        assert_eq!(net("::ffff:10.0.0.1"), net("10.0.0.1"), "an IPv4 address inside IPv6 is IPv4");
        for wrong in ["", "10.0.0", "10.0.0.1/33", "::1/129", "10.0.0.1/", "10.0.0.1/-1", "host"] {
            assert_eq!(Net::read(wrong), None, "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in ".{0,40}") {
            let _ = Net::parse(&text);
        }
    }
}
