//! What of an event a comparison looks at: where two events are equal in that, the comparison comes to the same.
//!
//! The columnar pass computes a comparison once per distinct input instead of once per event. So what stands here must never be less
//! than what `event.rs` reads; where in doubt it is more. `tests/columnar.rs` holds both to each other on random rules and events.

use weir_schema::{Column, Home, Kind};

use crate::check::{Key, Of, Right};
use crate::fields::{ARGUMENTS, Argument, Field, Supply};

/// Parts of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// Its kind decides how the others are read.
    pub(crate) kind: bool,
    /// Its host.
    pub(crate) host: bool,
    /// Its time.
    pub(crate) time: bool,
    /// Anything of its process.
    pub(crate) process: bool,
    /// Anything of its container.
    pub(crate) container: bool,
    /// Flags and mode, of events of kind open alone.
    pub(crate) opened: bool,
    /// Columns of its own, each once.
    pub(crate) columns: Vec<Column>,
}

impl Inputs {
    /// Of both sides of a comparison.
    pub(crate) fn of(key: &Key) -> Self {
        let mut inputs = Self::default();
        inputs.add(&key.left);
        match &key.right {
            Right::Of(of) => inputs.add(of),
            Right::Pattern(pattern) => pattern.of().into_iter().for_each(|of| inputs.add(of)),
            Right::Texts(_) => {}
        }
        inputs
    }

    /// Of what is computed from an event.
    pub(crate) fn of_term(of: &Of) -> Self {
        let mut inputs = Self::default();
        inputs.add(of);
        inputs
    }

    /// Whether events of one kind are all alike to it.
    pub(crate) fn is_kind_alone(&self, kind: Kind) -> bool {
        let opened = self.opened && kind == Kind::Open;
        self.columns.is_empty() && !(opened || self.host || self.time || self.process || self.container)
    }

    /// The columns, for events of a kind.
    pub(crate) fn columns_for(&self, kind: Kind) -> impl Iterator<Item = Column> + '_ {
        let opened = [Column::Flags, Column::Mode]
            .into_iter()
            .filter(move |column| self.opened && kind == Kind::Open && !self.columns.contains(column));
        self.columns.iter().copied().chain(opened)
    }

    /// Whether it is the same in all events of a batch that have the same process, or container, whatever their kind.
    pub(crate) fn is_entity_alone(&self) -> bool {
        !self.kind && !self.time && !self.host && self.columns.is_empty() && self.process != self.container
    }

    fn add(&mut self, of: &Of) {
        of.fields(&mut |field| self.field(field));
    }

    fn columns(&mut self, columns: &[Column]) {
        for column in columns {
            if !self.columns.contains(column) {
                self.columns.push(*column);
            }
        }
    }

    fn column(&mut self, column: Column) {
        match column.home() {
            Home::Process => self.process = true,
            Home::Container => self.container = true,
            Home::Host | Home::Key if column == Column::Kind => self.kind = true,
            Home::Host | Home::Key => self.host = true,
            Home::Event if column == Column::Time => self.time = true,
            Home::Event => self.columns(&[column]),
        }
    }

    fn field(&mut self, field: &Field) {
        let def = field.def();
        match def.supply {
            Supply::No => {}
            Supply::From(column) => self.column(column),
            Supply::Made => self.made(def.name, field.argument.as_ref()),
        }
    }

    fn made(&mut self, name: &str, argument: Option<&Argument>) {
        use Column::{
            Detail, Direction, DnsAnswers, DnsName, DstIp, DstPort, Flags, Mode, Path, PathTo, Result, SrcIp, SrcPort, Tid,
        };
        match name {
            "evt.num" | "evt.count" | "evt.source" | "evt.is_async" | "evt.dir" | "evt.type" | "evt.syscall.type"
            | "evt.category" => self.kind = true,
            "evt.count.error" | "evt.res" | "evt.rawres" | "evt.failed" => self.columns(&[Result]),
            "evt.is_open_read" | "evt.is_open_write" | "evt.is_open_create" | "evt.is_open_exec" => {
                (self.kind, self.opened) = (true, true);
            }
            "evt.arg" => {
                self.kind = true;
                self.columns(&[Detail, Result, Mode, Flags]);
                let column = ARGUMENTS.iter().find(|(name, _)| matches!(argument, Some(Argument::Key(key)) if key == name));
                if let Some((_, Some(column))) = column {
                    self.column(*column);
                }
            }
            "proc.vpid" => {
                (self.kind, self.process, self.container) = (true, true, true);
                self.columns(&[Detail]);
            }
            "thread.ismain" => {
                self.process = true;
                self.columns(&[Tid]);
            }
            "fd.name" | "fd.nameraw" => {
                self.kind = true;
                self.columns(&[SrcIp, SrcPort, DstIp, DstPort, Path]);
            }
            "fd.directory" | "fd.filename" => {
                self.kind = true;
                self.columns(&[SrcIp, DstIp, Path]);
            }
            "fd.type" | "fd.typechar" => {
                self.kind = true;
                self.columns(&[SrcIp, DstIp, Path, Flags]);
            }
            "weir.args" | "weir.arg" => self.process = true,
            "weir.detail" => self.columns(&[Detail]),
            "weir.success" => self.columns(&[Result]),
            "weir.initiated" => {
                self.kind = true;
                self.columns(&[Direction]);
            }
            "weir.target" => {
                self.kind = true;
                self.columns(&[Path, PathTo]);
            }
            "weir.audit_type" => {
                self.kind = true;
                self.columns(&[Path, DstIp]);
            }
            "weir.text" => {
                self.process = true;
                self.columns(&[Path, PathTo, DstIp, DnsName, DnsAnswers, Detail]);
            }
            _ if name.starts_with("evt.") => self.time = true,
            _ if name.starts_with("proc.") || name.starts_with("thread.") || name.starts_with("user.") => self.process = true,
            _ if name.starts_with("container.") => self.container = true,
            _ => {
                (self.kind, self.container) = (true, true);
                self.columns(&[SrcIp, SrcPort, DstIp, DstPort, Path, Flags, Result, Detail, Direction]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(name: &str) -> Inputs {
        Inputs::of_term(&Of::Field(Field::find(name, None).unwrap()))
    }

    #[test]
    fn what_a_field_reads() {
        assert!(inputs("evt.type").is_kind_alone(Kind::Open));
        assert!(inputs("proc.name").is_entity_alone() && inputs("container.id").is_entity_alone());
        assert!(!inputs("proc.vpid").is_entity_alone() && !inputs("fd.name").is_kind_alone(Kind::Open));
        assert_eq!(inputs("fs.path.target").columns, [Column::PathTo]);
        assert!(inputs("weir.kind").is_kind_alone(Kind::Open) && inputs("weir.args").is_entity_alone());
    }
}
