//! The first words on a link between two workers' processes: both must mean the same mesh.
//!
//! ```text
//! greeting = "WMSH" | version u16 | cluster u128 | generation u64 | from u32 | to u32 | build u64     integers little-endian
//! answer   = u8: 0 welcome, else why not
//! ```
//!
//! The link is mutual TLS between nodes already. So this keeps apart what the certificates cannot: another cluster of the same fleet,
//! an older generation, another place, another build.

use xxhash_rust::xxh3::xxh3_64;

/// What one end says of the mesh it wants to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// Which cluster: the nonce of its chain's first record.
    pub(crate) cluster: u128,
    /// Which generation.
    pub(crate) generation: u64,
    /// The caller's place.
    pub(crate) from: u32,
    /// The place it calls.
    pub(crate) to: u32,
    /// Of the program.
    pub(crate) build: u64,
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The link stands.
    Welcome,
    /// Not a greeting at all, or of another version.
    Unknown,
    /// Of another cluster.
    Cluster,
    /// Of another generation.
    Generation,
    /// A place that is not the caller's, or is taken.
    Place,
    /// Of another build.
    Build,
}

impl Greeting {
    /// Its bytes.
    pub(crate) fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = Vec::with_capacity(GREETING_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.cluster.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.from.to_le_bytes());
        bytes.extend_from_slice(&self.to.to_le_bytes());
        bytes.extend_from_slice(&self.build.to_le_bytes());
        bytes.try_into().expect("the fields have this length together")
    }

    /// Reads one back; nothing for other bytes.
    pub(crate) fn decode(bytes: &[u8; GREETING_BYTES]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?.strip_prefix(&VERSION.to_le_bytes())?;
        let (cluster, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (from, rest) = rest.split_first_chunk()?;
        let (to, rest) = rest.split_first_chunk()?;
        let (build, _) = rest.split_first_chunk()?;
        Some(Self {
            cluster: u128::from_le_bytes(*cluster),
            generation: u64::from_le_bytes(*generation),
            from: u32::from_le_bytes(*from),
            to: u32::from_le_bytes(*to),
            build: u64::from_le_bytes(*build),
        })
    }

    /// How the end at place `to` of this mesh answers one that said `said`.
    pub(crate) fn answer(&self, said: Option<&Self>) -> Answer {
        match said {
            None => Answer::Unknown,
            Some(said) if said.cluster != self.cluster => Answer::Cluster,
            Some(said) if said.generation != self.generation => Answer::Generation,
            Some(said) if said.build != self.build => Answer::Build,
            Some(said) if (said.from, said.to) != (self.from, self.to) => Answer::Place,
            Some(_) => Answer::Welcome,
        }
    }
}

impl Answer {
    const ALL: [Self; 6] = [Self::Welcome, Self::Unknown, Self::Cluster, Self::Generation, Self::Place, Self::Build];

    /// Its byte.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// Reads one back.
    pub(crate) fn from_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|answer| answer.code() == code).unwrap_or(Self::Unknown)
    }

    /// For people.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Welcome => "welcome",
            Self::Unknown => "not a greeting of this version",
            Self::Cluster => "of another cluster",
            Self::Generation => "of another generation",
            Self::Place => "of another place in the mesh",
            Self::Build => "of another build: run the same program on all nodes",
        }
    }
}

/// What the program is: its version and those of the formats that its processes share.
pub(crate) fn build() -> u64 {
    xxh3_64(BUILD.as_bytes())
}

/// The build in words. A change of what workers send each other raises the last number.
pub(crate) const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), " chain 1 mesh 1");

/// Length of a greeting.
pub(crate) const GREETING_BYTES: usize = 4 + 2 + 16 + 8 + 4 + 4 + 8;
const MAGIC: &[u8] = b"WMSH";
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_reads_back_and_others_are_told_apart() {
        let ours = Greeting { cluster: 1 << 100, generation: 7, from: 2, to: 0, build: build() };
        assert_eq!(Greeting::decode(&ours.encode()), Some(ours));
        assert_eq!(Greeting::decode(&[0; GREETING_BYTES]), None);
        let mut other = ours.encode();
        other[4] = 9;
        assert_eq!(Greeting::decode(&other), None, "of another version");
        let answer = |said: Greeting| ours.answer(Some(&said));
        assert_eq!(answer(ours), Answer::Welcome);
        assert_eq!(answer(Greeting { cluster: 2, ..ours }), Answer::Cluster);
        assert_eq!(answer(Greeting { generation: 6, ..ours }), Answer::Generation);
        assert_eq!(answer(Greeting { from: 1, ..ours }), Answer::Place);
        assert_eq!(answer(Greeting { build: 3, ..ours }), Answer::Build);
        assert_eq!(ours.answer(None), Answer::Unknown);
        assert!(Answer::ALL.into_iter().all(|answer| Answer::from_code(answer.code()) == answer));
        assert_eq!(Answer::from_code(200), Answer::Unknown);
    }
}
