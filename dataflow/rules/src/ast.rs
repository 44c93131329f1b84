//! A condition as a tree, before names are resolved.

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Expr {
    /// All hold. Never empty.
    And(Vec<Self>),
    /// One holds. Never empty.
    Or(Vec<Self>),
    Not(Box<Self>),
    /// The condition of that name.
    Macro(String),
    Check(Check),
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Check {
    pub(crate) left: Term,
    pub(crate) op: Op,
    pub(crate) modifier: Option<Modifier>,
    pub(crate) right: Vec<Operand>,
}

/// What is computed from an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Term {
    /// `proc.aname[2]`: name and what stands in brackets.
    Field { name: String, argument: Option<String> },
    /// A transformer over terms and texts.
    Call(Transformer, Vec<Self>),
    /// A text as argument of a transformer.
    Text(String),
}

/// The right side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Operand {
    /// As written. A bare text may be a list's name.
    Text { text: String, quoted: bool },
    /// A list by name, without parentheses: `in names`.
    List(String),
    /// `val(field)` or a transformer.
    Term(Term),
}

/// Whether one, any or all values of the right side have to match: `name contains anyof (a, b)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Modifier {
    One,
    Any,
    All,
}

macro_rules! words {
    ($(#[$meta:meta])* $ty:ident { $($name:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $ty { $($name,)* }

        impl $ty {
            #[allow(dead_code, reason = "not every vocabulary is listed in a message")]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As written in conditions.
            pub(crate) const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub(crate) fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

words! {
    /// A comparison's operator.
    Op {
        Exists = "exists",
        Eq = "=",
        Ne = "!=",
        Lt = "<",
        Le = "<=",
        Gt = ">",
        Ge = ">=",
        Contains = "contains",
        IContains = "icontains",
        BContains = "bcontains",
        StartsWith = "startswith",
        BStartsWith = "bstartswith",
        EndsWith = "endswith",
        Glob = "glob",
        IGlob = "iglob",
        Regex = "regex",
        In = "in",
        Intersects = "intersects",
        PMatch = "pmatch",
    }
}

impl Op {
    /// Takes a list on the right.
    pub(crate) fn is_list(self) -> bool {
        matches!(self, Self::In | Self::Intersects | Self::PMatch)
    }

    /// Compares sizes.
    pub(crate) fn is_order(self) -> bool {
        matches!(self, Self::Lt | Self::Le | Self::Gt | Self::Ge)
    }

    /// An operator by name, as exceptions have it.
    pub(crate) fn named(text: &str) -> Option<Self> {
        if text == "==" { Some(Self::Eq) } else { Self::parse(text) }
    }
}

words! {
    /// A function over terms.
    Transformer {
        ToLower = "tolower",
        ToUpper = "toupper",
        B64 = "b64",
        Basename = "basename",
        Len = "len",
        Join = "join",
        Concat = "concat",
        GetOpt = "getopt",
    }
}
