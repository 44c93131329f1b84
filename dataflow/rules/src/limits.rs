//! What a rule file may hold at most. A file that asks for more is refused with the limit's name, never half loaded.

/// Bytes of one rule file. The stock files have 70 kB; ten times a hundred of them is a mistake or an attack.
pub const FILE_BYTES_MAX: usize = 8 << 20;
/// Depth of nesting in YAML; Falco's files need five.
pub const YAML_DEPTH_MAX: usize = 32;
/// YAML values of one file, aliases counted as often as they are used.
pub const YAML_NODES_MAX: usize = 1_000_000;
/// Bytes of one condition, appended parts included.
pub const CONDITION_BYTES_MAX: usize = 1 << 20;
/// Depth of parentheses, `not` and transformers in one condition. Falco's own parser stops at 100.
pub const CONDITION_DEPTH_MAX: usize = 100;
/// Depth of lists that name lists.
pub const LIST_DEPTH_MAX: usize = 64;
/// Depth of a condition with its macros written out: evaluation recurses as deep.
pub const EXPANDED_DEPTH_MAX: usize = 500;
/// Values of one list after the lists it names are spliced in.
pub const LIST_ITEMS_MAX: usize = 100_000;
/// Nodes of the graph of all rules.
pub const GRAPH_NODES_MAX: usize = 1_000_000;
/// Values of all lists as they stand in conditions, over all rules.
pub const OPERANDS_MAX: usize = 4_000_000;
/// Compiled size of one regular expression.
pub const REGEX_BYTES_MAX: usize = 1 << 20;
/// Rules, macros and lists of one set.
pub const ITEMS_MAX: usize = 200_000;
/// Texts that one value of a Sigma rule may expand to, by placeholders and encodings.
pub const EXPANSIONS_MAX: usize = 1_000;
/// Rules of one correlation: a hit says of which it is in 32 bits.
pub const CORRELATION_RULES_MAX: usize = 32;
/// Fields that a correlation groups by, or aliases that it has.
pub const CORRELATION_FIELDS_MAX: usize = 16;
/// Longest timespan of a correlation, thirty days: its hits are kept for so long.
pub const CORRELATION_SPAN_MS_MAX: u64 = 30 * 86_400_000;
/// Largest count that a correlation may ask for: so many hits of one group are kept in memory.
pub const CORRELATION_COUNT_MAX: i64 = 100_000;
/// Depth of correlations of correlations: each level is an operator of its own in the engine.
pub const CORRELATION_LEVELS_MAX: usize = 3;
/// Bytes of one value that groups are told apart by; of a longer one the beginning and a hash are kept.
pub const CORRELATION_KEY_BYTES_MAX: usize = 256;
