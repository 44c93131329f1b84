//! Hash maps inside a saved state, as a sequence of pairs.

use std::hash::{BuildHasher, Hash};

use hashbrown::HashMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<K: Serialize, V: Serialize, B, S: Serializer>(map: &HashMap<K, V, B>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(map.iter())
}

pub(crate) fn deserialize<'de, K, V, B, D>(from: D) -> Result<HashMap<K, V, B>, D::Error>
where
    K: Deserialize<'de> + Eq + Hash,
    V: Deserialize<'de>,
    B: BuildHasher + Default,
    D: Deserializer<'de>,
{
    Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
}
