//! All conditions of a rule set as one graph: equal expressions are one node, and an event evaluates a node once.
//!
//! A node's number is higher than the numbers of its parts. A macro is one node for all rules that use it.

use std::collections::{BTreeSet, HashMap, HashSet};

use weir_schema::Kind;

use crate::ast::Op;
use crate::check::{Check, Key, Of, Right};
use crate::error::{Fault, Why};
use crate::fields::Field;
use crate::limits::{EXPANDED_DEPTH_MAX, GRAPH_NODES_MAX, OPERANDS_MAX};
use crate::names::calls;
use crate::resolve::too_deep;
use crate::value::FieldSource;

/// Number of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    And(Box<[NodeId]>),
    Or(Box<[NodeId]>),
    Not(NodeId),
    Check(u32),
}

/// The graph.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    /// How deep evaluation of each node goes, itself counted.
    depths: Vec<usize>,
    known: HashMap<Node, NodeId>,
    pub(crate) checks: Vec<Check>,
    known_checks: HashMap<Key, u32>,
    operands: usize,
}

/// What an event's nodes have come to. Reused from event to event.
#[derive(Debug, Default, Clone)]
pub(crate) struct Memo {
    /// Per node: twice the event's number, plus one if it holds.
    cells: Vec<u64>,
    event: u64,
    /// Checks computed so far: tells how much was shared.
    pub(crate) checks_computed: u64,
}

impl Memo {
    /// Begins the next event.
    pub(crate) fn next(&mut self, graph: &Graph) {
        self.event += 1;
        self.cells.resize(graph.nodes.len(), 0);
    }
}

impl Graph {
    /// Conjunction; `parts` is not empty.
    pub(crate) fn and(&mut self, parts: Vec<NodeId>) -> Result<NodeId, Fault> {
        self.group(parts, Node::And)
    }

    /// Disjunction; `parts` is not empty.
    pub(crate) fn or(&mut self, parts: Vec<NodeId>) -> Result<NodeId, Fault> {
        self.group(parts, Node::Or)
    }

    fn group(&mut self, mut parts: Vec<NodeId>, node: impl Fn(Box<[NodeId]>) -> Node) -> Result<NodeId, Fault> {
        let mut seen = HashSet::new();
        parts.retain(|part| seen.insert(*part));
        if parts.len() == 1 { Ok(parts[0]) } else { self.node(node(parts.into())) }
    }

    pub(crate) fn not(&mut self, part: NodeId) -> Result<NodeId, Fault> {
        if let Node::Not(inner) = &self.nodes[part.0 as usize] {
            return Ok(*inner);
        }
        self.node(Node::Not(part))
    }

    pub(crate) fn check(&mut self, key: Key) -> Result<NodeId, Fault> {
        if let Some(check) = self.known_checks.get(&key) {
            return self.node(Node::Check(*check));
        }
        let operands = match &key.right {
            Right::Texts(texts) => texts.len(),
            Right::Pattern(pattern) => pattern.operands(),
            Right::Of(_) => 0,
        };
        self.operands += operands;
        if operands > 0 && self.operands > OPERANDS_MAX {
            let what = format!("the lists of all rules have more than {OPERANDS_MAX} values where they are used");
            return Err(Fault::new(Why::Limit, what, "use the same list in the same comparison, or fewer rules"));
        }
        let check = Check::new(key.clone())?;
        let number = self.checks.len() as u32;
        self.checks.push(check);
        self.known_checks.insert(key, number);
        self.node(Node::Check(number))
    }

    fn node(&mut self, node: Node) -> Result<NodeId, Fault> {
        if let Some(id) = self.known.get(&node) {
            return Ok(*id);
        }
        if self.nodes.len() >= GRAPH_NODES_MAX {
            let what = format!("all rules together have more than {GRAPH_NODES_MAX} expressions");
            return Err(Fault::new(Why::Limit, what, "load fewer rules"));
        }
        let depth = |part: &NodeId| self.depths[part.0 as usize];
        let below = match &node {
            Node::And(parts) | Node::Or(parts) => parts.iter().map(depth).max().unwrap_or(0),
            Node::Not(part) => depth(part),
            Node::Check(_) => 0,
        };
        if below >= EXPANDED_DEPTH_MAX {
            return Err(too_deep());
        }
        self.depths.push(below + 1);
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(node.clone());
        self.known.insert(node, id);
        Ok(id)
    }

    /// Whether a node holds for the event that `memo` has begun.
    pub(crate) fn holds(&self, id: NodeId, source: &(impl FieldSource + ?Sized), memo: &mut Memo) -> bool {
        let cell = memo.cells[id.0 as usize];
        if cell >> 1 == memo.event {
            return cell & 1 == 1;
        }
        let holds = match &self.nodes[id.0 as usize] {
            Node::And(parts) => parts.iter().all(|part| self.holds(*part, source, memo)),
            Node::Or(parts) => parts.iter().any(|part| self.holds(*part, source, memo)),
            Node::Not(part) => !self.holds(*part, source, memo),
            Node::Check(check) => {
                memo.checks_computed += 1;
                self.checks[*check as usize].holds(source)
            }
        };
        memo.cells[id.0 as usize] = memo.event << 1 | u64::from(holds);
        holds
    }

    /// A part that has to hold wherever the node holds: the first of its conjunction, or the node itself.
    pub(crate) fn guard(&self, mut id: NodeId) -> NodeId {
        while let Node::And(parts) = &self.nodes[id.0 as usize] {
            id = parts[0];
        }
        id
    }

    /// Every comparison below a node, once as it stands and once negated if it occurs so.
    fn comparisons(&self, id: NodeId) -> Vec<(&Key, Sign)> {
        let mut keys = Vec::new();
        let mut seen = HashSet::new();
        let mut todo = vec![(id, Sign::Plain)];
        while let Some((id, sign)) = todo.pop() {
            if !seen.insert((id, sign)) {
                continue;
            }
            match &self.nodes[id.0 as usize] {
                Node::And(parts) | Node::Or(parts) => todo.extend(parts.iter().map(|part| (*part, sign))),
                Node::Not(part) => todo.push((*part, sign.turned())),
                Node::Check(check) => keys.push((&self.checks[*check as usize].key, sign)),
            }
        }
        keys
    }

    /// Every field that a node reads, in order of names, each once.
    pub(crate) fn fields(&self, id: NodeId) -> Vec<Field> {
        let mut fields = BTreeSet::new();
        for (key, _) in self.comparisons(id) {
            let mut add = |field: &Field| _ = fields.insert(field.clone());
            key.left.fields(&mut add);
            let right = match &key.right {
                Right::Of(of) => Some(of),
                Right::Pattern(pattern) => pattern.of(),
                Right::Texts(_) => None,
            };
            if let Some(of) = right {
                of.fields(&mut add);
            }
        }
        fields.into_iter().collect()
    }

    /// Fields that a node reads below an odd number of `not`: what excludes.
    pub(crate) fn excluding_fields(&self, id: NodeId) -> BTreeSet<Field> {
        let mut fields = BTreeSet::new();
        for (key, sign) in self.comparisons(id) {
            if sign == Sign::Negated {
                key.left.fields(&mut |field| _ = fields.insert(field.clone()));
            }
        }
        fields
    }

    /// Event types that a node asks for, of comparisons none of whose types is collected.
    pub(crate) fn types_lacking(&self, id: NodeId) -> Vec<String> {
        let is_collected = |name: &String| Kind::ALL.iter().any(|kind| calls(*kind).contains(&name.as_str()));
        let mut lacking = BTreeSet::new();
        for (key, sign) in self.comparisons(id) {
            if let (true, Op::Eq | Op::In, Right::Texts(texts)) = (is_type(key) && sign == Sign::Plain, key.op, &key.right)
                && !texts.iter().any(is_collected)
            {
                lacking.extend(texts.iter().cloned());
            }
        }
        lacking.into_iter().collect()
    }

    /// Whether events of all types have to be tried: nothing in the condition's positive part asks for `evt.type`.
    pub(crate) fn asks_for_type(&self, id: NodeId) -> bool {
        self.types(id, false, 0)
    }

    /// Whether the node, negated or not, can hold for few event types only. Deep graphs count as asking for all.
    fn types(&self, id: NodeId, negated: bool, depth: usize) -> bool {
        if depth > TYPE_DEPTH_MAX {
            return false;
        }
        match &self.nodes[id.0 as usize] {
            Node::And(parts) if !negated => parts.iter().any(|part| self.types(*part, negated, depth + 1)),
            Node::Or(parts) if negated => parts.iter().any(|part| self.types(*part, negated, depth + 1)),
            Node::And(parts) | Node::Or(parts) => parts.iter().all(|part| self.types(*part, negated, depth + 1)),
            Node::Not(part) => self.types(*part, !negated, depth + 1),
            Node::Check(check) => {
                let key = &self.checks[*check as usize].key;
                is_type(key) && (if negated { key.op == Op::Ne } else { matches!(key.op, Op::Eq | Op::In) })
            }
        }
    }

    /// Nodes and distinct checks.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.nodes.len(), self.checks.len())
    }
}

/// Whether an even or an odd number of `not` stands above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sign {
    Plain,
    Negated,
}

impl Sign {
    fn turned(self) -> Self {
        if self == Self::Plain { Self::Negated } else { Self::Plain }
    }
}

fn is_type(key: &Key) -> bool {
    matches!(&key.left, Of::Field(field) if field.def().name == "evt.type")
}

/// How deep a search for event types goes; without sharing it could take long on purpose-built rules.
const TYPE_DEPTH_MAX: usize = 16;
