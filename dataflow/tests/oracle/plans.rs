//! Random plans: one operator over sources, or several above each other.

use arrow::datatypes::DataType;
use weir_plan::{AggregateCall, AggregateFunc, Bounds, Expr, JoinKind, Plan, cast, col, lit, when};

use super::rows::{COLUMNS, Random, SOURCES};

/// What a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Filter,
    Project,
    Aggregate,
    Join,
    Temporal,
    Windows,
    TopK,
    Union,
}

const OPERATORS: [Operator; 8] = [
    Operator::Filter,
    Operator::Project,
    Operator::Aggregate,
    Operator::Join,
    Operator::Temporal,
    Operator::Windows,
    Operator::TopK,
    Operator::Union,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Time,
    Float,
    Flag,
}

/// A plan and its columns.
#[derive(Clone)]
struct Made {
    plan: Plan,
    columns: Vec<(String, Kind)>,
}

struct Maker<'r> {
    random: &'r mut Random,
    names: u64,
}

/// The operator over sources.
pub fn alone(random: &mut Random, operator: Operator) -> Plan {
    let mut maker = Maker { random, names: 0 };
    maker.operator(operator, 0).plan
}

/// After this no row is withdrawn, counted from its time.
pub const SETTLE_MS: i64 = 300;

/// Extremes over rows that settle. Without a key, so that enough of them meet.
pub fn settling(random: &mut Random) -> Plan {
    let mut maker = Maker { random, names: 0 };
    let input = maker.source();
    let mut calls = vec![];
    for _ in 0..4 {
        let arg = col(maker.random.pick(&input.columns).0.as_str());
        let by = col(maker.random.pick(&input.columns).0.as_str());
        let funcs =
            [AggregateFunc::Min, AggregateFunc::Max, AggregateFunc::ArgMin { by: by.clone() }, AggregateFunc::ArgMax { by }];
        calls.push(AggregateCall::new(maker.random.pick(&funcs).clone(), arg, maker.name()));
    }
    let none: [(Expr, String); 0] = [];
    let time = maker.column(&input, Kind::Time).unwrap();
    input.plan.aggregate_bounded(none, calls, Bounds { settled_at: Some(later(time)), forget_at: None })
}

/// Windows that leave when they are forgotten: what is ignored is of windows that are gone.
pub fn forgetting(random: &mut Random) -> Plan {
    let mut maker = Maker { random, names: 0 };
    let input = maker.source();
    let time = maker.column(&input, Kind::Time).unwrap();
    let bounds = Bounds { settled_at: None, forget_at: Some(later(col("until"))) };
    let keys = [(col("window_end"), "until"), (maker.column(&input, Kind::Text).unwrap(), "key")];
    let int = maker.column(&input, Kind::Int).unwrap();
    let calls =
        [AggregateCall::count("n"), AggregateCall::max(int.clone(), "max"), AggregateCall::percentile(0.5, int, "median")];
    input.plan.hop(time, 250, 500).aggregate_bounded(keys, calls, bounds).until(later(col("until")))
}

/// Windows of what adds up: rows come and go, and each changes the windows of its pane only.
pub fn adding_up(random: &mut Random) -> Plan {
    let mut maker = Maker { random, names: 0 };
    let input = maker.source();
    let time = maker.column(&input, Kind::Time).unwrap();
    let int = maker.column(&input, Kind::Int).unwrap();
    let keys = [(maker.column(&input, Kind::Text).unwrap(), "key"), (col("window_start"), "from"), (col("window_end"), "until")];
    let calls = [
        AggregateCall::count("n"),
        AggregateCall::sum(int.clone(), "sum"),
        AggregateCall::avg(int.clone(), "avg"),
        AggregateCall::sum(int.clone(), "positive").filter(int.gt(lit(0_i64))),
    ];
    let size = *maker.random.pick(&[250, 500, 1_000]);
    input.plan.hop(time, 250, size).aggregate(keys, calls)
}

fn later(time: Expr) -> Expr {
    cast(cast(time, DataType::Int64) + lit(SETTLE_MS * 1_000_000), weir_plan::time_type())
}

/// Random operators, at most this deep.
pub fn composed(random: &mut Random, depth: u32) -> Plan {
    let mut maker = Maker { random, names: 0 };
    maker.any(depth).plan
}

impl Maker<'_> {
    fn any(&mut self, depth: u32) -> Made {
        if depth == 0 {
            return self.source();
        }
        let operator = *self.random.pick(&OPERATORS);
        self.operator(operator, depth - 1)
    }

    fn operator(&mut self, operator: Operator, depth: u32) -> Made {
        let input = self.any(depth);
        match operator {
            Operator::Filter => Made { plan: input.plan.clone().filter(self.predicate(&input)), ..input },
            Operator::Project => self.project(input),
            Operator::Aggregate => self.aggregate(input),
            Operator::Join => self.join(input, depth),
            Operator::Temporal => self.temporal(input),
            Operator::Windows => self.windows(input),
            Operator::TopK => self.top_k(input),
            Operator::Union => {
                let other = Made { plan: input.plan.clone().filter(self.predicate(&input)), ..input.clone() };
                Made { plan: Plan::union([input.plan, other.plan]), columns: input.columns }
            }
        }
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("c{}", self.names)
    }

    fn source(&mut self) -> Made {
        let source = *self.random.pick(&SOURCES);
        let kinds = [Kind::Text, Kind::Int, Kind::Time, Kind::Float, Kind::Flag];
        let columns: Vec<_> = kinds.into_iter().map(|kind| (self.name(), kind)).collect();
        let plan = Plan::source(source).project(COLUMNS.iter().zip(&columns).map(|(old, (new, _))| (col(*old), new.clone())));
        Made { plan, columns }
    }

    fn column(&mut self, made: &Made, kind: Kind) -> Option<Expr> {
        let fitting: Vec<_> = made.columns.iter().filter(|(_, of)| *of == kind).collect();
        (!fitting.is_empty()).then(|| col(self.random.pick(&fitting).0.as_str()))
    }

    fn predicate(&mut self, made: &Made) -> Expr {
        let (name, kind) = self.random.pick(&made.columns).clone();
        let column = col(name);
        let simple = match kind {
            Kind::Text if self.random.chance(50) => column.eq(lit("a")),
            Kind::Text => column.in_list(vec![lit("b"), lit("cc")], self.random.chance(50)),
            Kind::Int => column.gt(lit(self.random.below(5) as i64)),
            Kind::Time => cast(column, DataType::Int64).lt(lit(2_000_000_000_i64)),
            Kind::Float => column.lt_eq(lit(0.25)),
            Kind::Flag => column,
        };
        match self.random.below(4) {
            0 => simple.clone().is_not_null().and(Expr::Not(Box::new(simple))),
            1 => simple.or(self.predicate(made)),
            _ => simple,
        }
    }

    fn project(&mut self, input: Made) -> Made {
        let mut exprs = vec![];
        for (name, kind) in input.columns.clone() {
            if self.random.chance(60) {
                exprs.push((col(name), kind));
            }
        }
        if let Some(int) = self.column(&input, Kind::Int) {
            exprs.push((int.clone() + lit(1_i64), Kind::Int));
            exprs.push((-int.clone() * lit(2_i64), Kind::Int));
            exprs.push((when(int.gt(lit(2_i64)), lit("many")).otherwise(lit("few")).unwrap(), Kind::Text));
        }
        if let Some(text) = self.column(&input, Kind::Text) {
            exprs.push((text.clone().is_null(), Kind::Flag));
            exprs.push((when(text.clone().eq(lit("a")), text.clone()).otherwise(lit("other")).unwrap(), Kind::Text));
        }
        exprs.push((lit(7_i64), Kind::Int));
        let columns: Vec<_> = exprs.iter().map(|(_, kind)| (self.name(), *kind)).collect();
        let exprs = exprs.into_iter().zip(&columns).map(|((expr, _), (name, _))| (expr, name.clone()));
        Made { plan: input.plan.project(exprs), columns }
    }

    fn aggregate(&mut self, input: Made) -> Made {
        let mut columns = vec![];
        let mut keys = vec![];
        for _ in 0..self.random.below(3) {
            let (name, kind) = self.random.pick(&input.columns).clone();
            if kind != Kind::Float {
                columns.push((self.name(), kind));
                keys.push((col(name), columns.last().unwrap().0.clone()));
            }
        }
        let mut calls = vec![];
        for _ in 0..1 + self.random.below(4) {
            let (func, arg, kind) = self.call(&input);
            columns.push((self.name(), kind));
            let mut call = AggregateCall { func, arg, filter: None, name: columns.last().unwrap().0.clone() };
            if self.random.chance(30) {
                call = call.filter(self.predicate(&input));
            }
            calls.push(call);
        }
        Made { plan: input.plan.aggregate(keys, calls), columns }
    }

    fn call(&mut self, input: &Made) -> (AggregateFunc, Option<Expr>, Kind) {
        let (name, kind) = self.random.pick(&input.columns).clone();
        let by = col(self.random.pick(&input.columns).0.as_str());
        let arg = Some(col(name));
        match (self.random.below(9), kind) {
            (0, _) => (AggregateFunc::Count, None, Kind::Int),
            (1, _) => (AggregateFunc::Count, arg, Kind::Int),
            (2, _) => (AggregateFunc::CountDistinct, arg, Kind::Int),
            (3, _) => (AggregateFunc::Min, arg, kind),
            (4, Kind::Int) => (AggregateFunc::Sum, arg, Kind::Int),
            (5, Kind::Int) => (AggregateFunc::Avg, arg, Kind::Float),
            (6 | 4, Kind::Int | Kind::Float) => {
                let fraction = *self.random.pick(&[0.0, 0.5, 0.95, 1.0, 0.3]);
                (AggregateFunc::PercentileCont(fraction), arg, Kind::Float)
            }
            (7, _) => (AggregateFunc::ArgMax { by }, arg, kind),
            (8, _) => (AggregateFunc::ArgMin { by }, arg, kind),
            _ => (AggregateFunc::Max, arg, kind),
        }
    }

    fn join(&mut self, left: Made, depth: u32) -> Made {
        let right = self.any(depth);
        let mut on = vec![];
        for kind in [Kind::Int, Kind::Text, Kind::Flag, Kind::Time] {
            if !on.is_empty() && self.random.chance(70) {
                continue;
            }
            if let (Some(a), Some(b)) = (self.column(&left, kind), self.column(&right, kind)) {
                on.push((a, b));
            }
        }
        if on.is_empty() {
            return left;
        }
        let kind = *self.random.pick(&[JoinKind::Inner, JoinKind::Left, JoinKind::Full]);
        let compared = (self.column(&left, Kind::Int), self.column(&right, Kind::Int));
        let columns = left.columns.iter().chain(&right.columns).cloned().collect();
        let plan = match compared {
            (Some(a), Some(b)) if self.random.chance(50) => left.plan.join_where(right.plan, kind, on, a.lt_eq(b)),
            _ => left.plan.join(right.plan, kind, on),
        };
        Made { plan, columns }
    }

    fn temporal(&mut self, input: Made) -> Made {
        let (Some(from), Some(until)) = (self.column(&input, Kind::Time), self.column(&input, Kind::Time)) else {
            return input;
        };
        let plan = match self.random.below(3) {
            0 => input.plan.from(from),
            1 => input.plan.until(until),
            _ => {
                let later = cast(cast(until, DataType::Int64) + lit(500_000_000_i64), weir_plan::time_type());
                input.plan.visible(Some(from), Some(later))
            }
        };
        Made { plan, columns: input.columns }
    }

    fn windows(&mut self, input: Made) -> Made {
        let Some(time) = self.column(&input, Kind::Time) else { return input };
        let (hop_ms, size_ms) = *self.random.pick(&[(500, 500), (500, 1_500), (250, 1_000)]);
        let (start_name, end_name) = (self.name(), self.name());
        let bounds = [(start_name.clone(), Kind::Time), (end_name.clone(), Kind::Time)];
        let columns = input.columns.into_iter().chain(bounds).collect();
        Made { plan: Plan::HopWindow { input: Box::new(input.plan), time, hop_ms, size_ms, start_name, end_name }, columns }
    }

    fn top_k(&mut self, input: Made) -> Made {
        let mut partition = vec![];
        let (name, kind) = self.random.pick(&input.columns).clone();
        if self.random.chance(50) && kind != Kind::Float {
            partition.push(col(name));
        }
        let order: Vec<_> = (0..1 + self.random.below(2))
            .map(|_| (col(self.random.pick(&input.columns).0.as_str()), self.random.chance(50)))
            .collect();
        let rank = self.name();
        let plan = input.plan.top_k(partition, order, 1 + self.random.below(5), rank.clone());
        Made { plan, columns: input.columns.into_iter().chain([(rank, Kind::Int)]).collect() }
    }
}
