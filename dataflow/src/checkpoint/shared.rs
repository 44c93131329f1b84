//! Values that many others point to, written once inside one saved state and one again when it is taken up.
//!
//! While a state is saved, a pointer is followed at its first occurrence only; later ones are its number. Outside of that (between workers)
//! every occurrence is written out. On both ends:
//!
//! ```text
//! 0 | the value          here it is; inside a state it has the next number
//! n | nothing            the value of number n, from 1
//! ```

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

thread_local! {
    static WRITTEN: RefCell<Option<HashMap<*const (), u32, FixedState>>> = const { RefCell::new(None) };
    static READ: RefCell<Option<Vec<Arc<dyn Any + Send + Sync>>>> = const { RefCell::new(None) };
}

/// Runs `save` with numbers of its own. Nothing it points to may be dropped meanwhile: states are borrowed, so nothing is.
pub(crate) fn saving<R>(save: impl FnOnce() -> R) -> R {
    WRITTEN.set(Some(HashMap::default()));
    let saved = save();
    WRITTEN.set(None);
    saved
}

/// Runs `load` with numbers of its own.
pub(crate) fn loading<R>(load: impl FnOnce() -> R) -> R {
    READ.set(Some(Vec::new()));
    let loaded = load();
    READ.set(None);
    loaded
}

/// For `#[serde(with)]` on an `Arc`.
pub(crate) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
    let known = WRITTEN.with_borrow_mut(|written| {
        let written = written.as_mut()?;
        let next = written.len() as u32 + 1;
        let pointer = Arc::as_ptr(value).cast::<()>();
        match written.get(&pointer) {
            Some(number) => Some(*number),
            None => {
                written.insert(pointer, next);
                None
            }
        }
    });
    match known {
        Some(number) => (number, None::<&T>).serialize(to),
        None => (0_u32, Some(&**value)).serialize(to),
    }
}

/// For `#[serde(with)]` on an `Arc`.
pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Arc<T>, D::Error>
where
    T: DeserializeOwned + Send + Sync + 'static,
    D: Deserializer<'de>,
{
    // The number is taken before the value is read: values inside it have later ones.
    let place = READ.with_borrow(|read| read.as_ref().map(Vec::len));
    let reserve: Arc<dyn Any + Send + Sync> = Arc::new(());
    READ.with_borrow_mut(|read| read.iter_mut().for_each(|read| read.push(Arc::clone(&reserve))));
    let (number, value) = <(u32, Option<T>)>::deserialize(from)?;
    READ.with_borrow_mut(|read| match (number, value, read, place) {
        (0, Some(value), Some(read), Some(place)) => {
            let value = Arc::new(value);
            read[place] = value.clone();
            Ok(value)
        }
        (0, Some(value), ..) => Ok(Arc::new(value)),
        (number @ 1.., None, Some(read), Some(place)) => {
            read.truncate(place);
            let known = read.get(number as usize - 1).cloned().and_then(|known| known.downcast::<T>().ok());
            known.ok_or_else(|| D::Error::custom("a value is named that was not written"))
        }
        _ => Err(D::Error::custom("neither a value nor the number of one")),
    })
}

/// The same for what may be absent.
pub(crate) mod maybe {
    use super::{Arc, Deserialize, DeserializeOwned, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(bound(serialize = "T: Serialize", deserialize = "T: DeserializeOwned + Send + Sync + 'static"))]
    struct One<T>(#[serde(with = "super")] Arc<T>);

    pub(crate) fn serialize<T: Serialize, S: Serializer>(value: &Option<Arc<T>>, to: S) -> Result<S::Ok, S::Error> {
        value.clone().map(One).serialize(to)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Option<Arc<T>>, D::Error>
    where
        T: DeserializeOwned + Send + Sync + 'static,
        D: Deserializer<'de>,
    {
        Ok(Option::<One<T>>::deserialize(from)?.map(|one| one.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Inner {
        name: String,
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Outer {
        #[serde(with = "super")]
        inner: Arc<Inner>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Row {
        #[serde(with = "super")]
        outer: Arc<Outer>,
        #[serde(with = "super::maybe")]
        other: Option<Arc<Inner>>,
    }

    fn rows() -> Vec<Row> {
        let inner = Arc::new(Inner { name: "x".repeat(100) });
        let outer = Arc::new(Outer { inner: inner.clone() });
        (0..50).map(|at| Row { outer: outer.clone(), other: (at % 2 == 0).then(|| inner.clone()) }).collect()
    }

    #[test]
    fn what_is_shared_is_written_once_and_shared_again() {
        let rows = rows();
        let saved = saving(|| postcard::to_stdvec(&rows).unwrap());
        assert!(saved.len() < 500, "{} bytes", saved.len());
        let loaded: Vec<Row> = loading(|| postcard::from_bytes(&saved).unwrap());
        assert_eq!(loaded[49].outer.inner.name, rows[0].outer.inner.name);
        assert!(Arc::ptr_eq(&loaded[0].outer, &loaded[49].outer));
        assert!(Arc::ptr_eq(&loaded[0].outer.inner, loaded[48].other.as_ref().unwrap()));
    }

    #[test]
    fn between_workers_everything_is_written_out() {
        let rows = rows();
        let sent = postcard::to_stdvec(&rows).unwrap();
        assert!(sent.len() > 5_000);
        let read: Vec<Row> = postcard::from_bytes(&sent).unwrap();
        assert_eq!(read[49].outer.inner.name, rows[0].outer.inner.name);
        // A number outside of a state names nothing.
        let saved = saving(|| postcard::to_stdvec(&rows).unwrap());
        assert!(postcard::from_bytes::<Vec<Row>>(&saved).is_err());
    }
}
