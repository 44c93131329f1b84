//! How a section of numbers is written down once: field, meaning, default and range.
//!
//! `numbers!` makes the public struct (with the default and range in its documentation), its `Default`, the raw form that
//! serde reads, and the check from one to the other. So the manual cannot say another default than the code.

/// Declares a section that holds whole numbers only. See the module.
macro_rules! numbers {
    (
        $(#[$about:meta])*
        $name:ident ($raw:ident) in $section:literal {
            $( $(#[$doc:meta])* $field:ident : $ty:ty = $default:literal in $min:literal ..= $max:literal; )*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $(
                $(#[$doc])*
                #[doc = concat!("\n\nDefault ", stringify!($default), ", from ", stringify!($min), " to ", stringify!($max), ".")]
                pub $field: $ty,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        /// What people write.
        #[derive(Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct $raw {
            $( $field: Option<i64>, )*
        }

        impl $raw {
            pub(crate) fn check(self, document: &crate::document::Document) -> Result<$name, crate::error::Error> {
                Ok($name {
                    $( $field: document.number(
                        concat!($section, ".", stringify!($field)), self.$field, $default, $min..=$max,
                    )? as $ty, )*
                })
            }
        }
    };
}

pub(crate) use numbers;
