//! A query as PostgreSQL's tools write it, to one that DataFusion plans.
//!
//! Names lose `pg_catalog.`, `OPERATOR(pg_catalog.~)` becomes `~`, casts to types of names and object ids become functions or casts that are
//! known. A query over a table that never has rows is answered without being planned: it has no rows, whatever it computes of them.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement as Parsed;
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, GroupByExpr, Ident, JoinOperator, ObjectName, ObjectNamePart, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, SetOperator, Statement as Ast, TableFactor, TableWithJoins, Value, Visit as _,
    VisitMut as _, Visitor, VisitorMut,
};

use super::{INFORMATION, PG, functions, is_always_empty, is_table};

/// Rewrites a query where it is one of the tools'.
pub(crate) fn as_postgresql(parsed: &mut Parsed) {
    let Parsed::Statement(statement) = parsed else { return };
    let mut rewriting = Rewriting::default();
    let _ = statement.visit(&mut rewriting);
    if let Ast::Query(query) = statement.as_mut()
        && rewriting.reads_catalog
    {
        tell_apart(query);
    }
}

#[derive(Default)]
struct Rewriting {
    reads_catalog: bool,
}

impl VisitorMut for Rewriting {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args, .. } = factor
            && let Some((schema, table)) = of_catalog(name)
        {
            self.reads_catalog = true;
            *name = named(&[schema, &table]);
            // `pg_get_keywords()`: a table here.
            *args = None;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if query.with.is_none() {
            empty_parts(&mut query.body);
            if is_emptied(&query.body) {
                query.order_by = None;
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        // Options of a relation and those of its TOAST table, which it has not.
        if let Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } = expr
            && let Expr::Function(function) = right.as_ref()
            && is_array_of_query(function).is_some_and(is_empty_query)
        {
            *expr = left.as_ref().clone();
        }
        // Before what is inside is looked at: it need not be planned.
        let no_rows = match expr {
            Expr::Subquery(query) => is_empty_query(query).then(null),
            Expr::Exists { subquery, negated } => is_empty_query(subquery).then(|| truth(*negated)),
            Expr::InSubquery { subquery, negated, .. } => is_empty_query(subquery).then(|| truth(*negated)),
            Expr::Function(function) if is_array_of_query(function).is_some_and(is_empty_query) => Some(null()),
            _ => None,
        };
        if let Some(known) = no_rows {
            *expr = known;
            return ControlFlow::Continue(());
        }
        if let Expr::InSubquery { expr: inner, subquery, negated } = expr
            && is_search_path(&subquery.to_string())
        {
            *expr = Expr::InList { expr: inner.clone(), list: vec![string(crate::tables::SCHEMA)], negated: *negated };
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => unqualify(&mut function.name),
            Expr::BinaryOp { op, .. } => {
                if let BinaryOperator::PGCustomBinaryOperator(parts) = op
                    && let Some(known) = parts.last().and_then(|name| operator(name))
                {
                    *op = known;
                }
            }
            Expr::Collate { expr: inner, .. } => *expr = inner.as_ref().clone(),
            Expr::Cast { .. } => retype(expr),
            Expr::Identifier(ident) if ident.quote_style.is_none() => {
                let name = ident.value.to_lowercase();
                if matches!(name.as_str(), "current_catalog" | "current_role" | "user") {
                    let name = if name == "current_catalog" { "current_database" } else { "current_user" };
                    *expr = call(name, vec![]);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// The catalog's table that a name means.
fn of_catalog(name: &ObjectName) -> Option<(&'static str, String)> {
    let parts: Vec<String> = name.0.iter().filter_map(ObjectNamePart::as_ident).map(|ident| ident.value.to_lowercase()).collect();
    match parts.as_slice() {
        [table] if is_table(PG, table) => Some((PG, table.clone())),
        [.., schema, table] if schema == PG => Some((PG, table.clone())),
        [.., schema, table] if schema == INFORMATION => Some((INFORMATION, table.clone())),
        _ => None,
    }
}

fn named(parts: &[&str]) -> ObjectName {
    ObjectName(parts.iter().map(|part| ObjectNamePart::Identifier(Ident::new(*part))).collect())
}

fn unqualify(name: &mut ObjectName) {
    let inside = name.0.len() == 2 && name.0[0].as_ident().is_some_and(|schema| schema.value.eq_ignore_ascii_case(PG));
    if inside {
        name.0.remove(0);
    }
}

fn operator(name: &str) -> Option<BinaryOperator> {
    Some(match name {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        _ => return None,
    })
}

/// A cast to one of PostgreSQL's own types.
fn retype(expr: &mut Expr) {
    let Expr::Cast { expr: inner, data_type, .. } = expr else { return };
    let is_text = matches!(inner.as_ref(), Expr::Value(value) if matches!(value.value, Value::SingleQuotedString(_)));
    if matches!(data_type, DataType::Regclass) {
        let name = if is_text { functions::REGCLASS } else { functions::REGCLASS_NAME };
        *expr = call(name, vec![inner.as_ref().clone()]);
        return;
    }
    if let DataType::Array(ArrayElemTypeDef::SquareBracket(element, _)) = data_type {
        if let Some(known) = custom(element).and_then(|name| known_type(&name)) {
            **element = known;
        }
        return;
    }
    let Some(name) = custom(data_type) else { return };
    let either = |to, back| call(if is_text { to } else { back }, vec![inner.as_ref().clone()]);
    match name.as_str() {
        "regclass" => *expr = either(functions::REGCLASS, functions::REGCLASS_NAME),
        "regtype" => *expr = either(functions::REGTYPE, functions::REGTYPE_NAME),
        "regnamespace" => *expr = either(functions::REGNAMESPACE, functions::REGNAMESPACE_NAME),
        // Texts here.
        "regproc" | "regprocedure" | "regoper" | "regoperator" | "regrole" => *expr = inner.as_ref().clone(),
        // A name that was made an object id already.
        "oid" if matches!(inner.as_ref(), Expr::Function(function) if function.name.to_string().starts_with("weir_reg")) => {
            *expr = inner.as_ref().clone();
        }
        other => {
            if let Some(known) = known_type(other) {
                *data_type = known;
            }
        }
    }
}

/// The name of a type that the parser does not know.
fn custom(data_type: &DataType) -> Option<String> {
    let DataType::Custom(name, _) = data_type else { return None };
    let parts: Vec<_> = name.0.iter().filter_map(ObjectNamePart::as_ident).map(|ident| ident.value.to_lowercase()).collect();
    match parts.as_slice() {
        [name] => Some(name.clone()),
        [schema, name] if schema == PG => Some(name.clone()),
        _ => None,
    }
}

fn known_type(name: &str) -> Option<DataType> {
    Some(match name {
        "name" | "char" | "text" | "varchar" | "bpchar" | "cstring" | "unknown" | "int2vector" | "oidvector" => DataType::Text,
        "oid" | "xid" | "int8" | "bigint" => DataType::BigInt(None),
        "int4" | "int" | "integer" => DataType::Integer(None),
        "int2" | "smallint" => DataType::SmallInt(None),
        "bool" | "boolean" => DataType::Boolean,
        "float8" => DataType::DoublePrecision,
        "float4" => DataType::Real,
        _ => return None,
    })
}

/// Puts a SELECT without rows in the place of one that has none.
fn empty_parts(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) if is_empty_select(select) => without_rows(select),
        SetExpr::SetOperation { left, right, .. } => {
            empty_parts(left);
            empty_parts(right);
        }
        _ => {}
    }
}

fn without_rows(select: &mut Select) {
    let (mut projection, mut names) = (Vec::new(), Vec::new());
    for (place, item) in select.projection.iter().enumerate() {
        let name = match item {
            SelectItem::ExprWithAlias { alias, .. } => alias.clone(),
            SelectItem::UnnamedExpr(expr) => Ident::with_quote('"', name_of(expr)),
            // Its columns are the table's: it is planned as it stands.
            _ => return,
        };
        let taken = names.contains(&name.value);
        names.push(name.value.clone());
        let marked = Ident::with_quote('"', if taken { format!("{}{MARK}{place}", name.value) } else { name.value });
        let text =
            Expr::Cast { kind: CastKind::Cast, expr: Box::new(null()), data_type: DataType::Text, array: false, format: None };
        projection.push(SelectItem::ExprWithAlias { expr: text, alias: marked });
    }
    select.projection = projection;
    select.from = vec![];
    select.distinct = None;
    select.selection = Some(truth(false));
    select.group_by = GroupByExpr::Expressions(vec![], vec![]);
    select.having = None;
}

/// Whether this is a SELECT that `without_rows` made.
fn is_emptied(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => select.from.is_empty() && select.selection.as_ref() == Some(&truth(false)),
        SetExpr::SetOperation { left, right, .. } => is_emptied(left) && is_emptied(right),
        _ => false,
    }
}

/// As PostgreSQL names a column.
fn name_of(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(ident) => ident.value.clone(),
        Expr::CompoundIdentifier(parts) => parts.last().map_or_else(String::new, |ident| ident.value.clone()),
        Expr::Function(function) => function.name.0.last().map_or_else(String::new, ToString::to_string).to_lowercase(),
        Expr::Cast { expr, .. } | Expr::Nested(expr) | Expr::Collate { expr, .. } => name_of(expr),
        Expr::Case { .. } => "case".into(),
        Expr::Subquery(_) => "?column?".into(),
        _ => "?column?".into(),
    }
}

fn is_empty_query(query: &Query) -> bool {
    fn body(set: &SetExpr) -> bool {
        match set {
            SetExpr::Select(select) => is_empty_select(select),
            SetExpr::Query(query) => is_empty_query(query),
            SetExpr::SetOperation { op: SetOperator::Union, left, right, .. } => body(left) && body(right),
            _ => false,
        }
    }
    query.with.is_none() && body(&query.body)
}

fn is_empty_select(select: &Select) -> bool {
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    select.from.iter().any(is_empty_from) && (grouped || !select.projection.iter().any(aggregates))
}

/// Whether it could be a row over no rows.
fn aggregates(item: &SelectItem) -> bool {
    let mut found = Aggregates { depth: 0, any: false };
    let _ = item.visit(&mut found);
    found.any
}

/// Looks for aggregates outside of subqueries.
struct Aggregates {
    depth: usize,
    any: bool,
}

impl Visitor for Aggregates {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            let name = function.name.0.last().map_or_else(String::new, ToString::to_string).to_lowercase();
            let known = ["count", "sum", "min", "max", "avg", "bool_and", "bool_or", "every"].contains(&name.as_str());
            self.any |= self.depth == 0 && function.over.is_none() && (known || name.ends_with("_agg"));
        }
        ControlFlow::Continue(())
    }
}

fn is_empty_from(from: &TableWithJoins) -> bool {
    let mut empty = is_empty_factor(&from.relation);
    for join in &from.joins {
        let right = is_empty_factor(&join.relation);
        empty = match &join.join_operator {
            JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => empty || right,
            JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => empty,
            JoinOperator::Right(_) | JoinOperator::RightOuter(_) => right,
            _ => empty && right,
        };
    }
    empty
}

fn is_empty_factor(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::Table { name, args: None, .. } => {
            of_catalog(name).is_some_and(|(schema, table)| is_always_empty(schema, &table))
        }
        // No relation has options.
        TableFactor::Table { name, args: Some(_), .. } => {
            name.0.last().is_some_and(|name| name.to_string() == "unnest") && factor.to_string().contains("reloptions)")
        }
        TableFactor::NestedJoin { table_with_joins, .. } => is_empty_from(table_with_joins),
        TableFactor::Derived { subquery, .. } => is_empty_query(subquery),
        _ => false,
    }
}

fn is_array_of_query(function: &Function) -> Option<&Query> {
    match &function.args {
        FunctionArguments::Subquery(query) if function.name.to_string().eq_ignore_ascii_case("array") => Some(query),
        _ => None,
    }
}

/// Grafana's query for the schemas of the search path.
fn is_search_path(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("generate_series(") && text.contains("string_to_array(current_setting('search_path')")
}

/// Columns of one name, which DataFusion refuses in one SELECT, are told apart by what `encode.rs` leaves out.
fn tell_apart(query: &mut Query) {
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    let wild: Vec<String> = select
        .projection
        .iter()
        .filter_map(|item| match item {
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => Some(name.to_string()),
            _ => None,
        })
        .collect();
    let mut seen = Vec::new();
    for (place, item) in select.projection.iter_mut().enumerate() {
        let (expr, name, told_by, clashes) = match item {
            SelectItem::UnnamedExpr(expr @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_))) => {
                let in_wild =
                    matches!(&*expr, Expr::CompoundIdentifier(parts) if parts.len() == 2 && wild.contains(&parts[0].to_string()));
                (expr.clone(), name_of(expr), expr.to_string(), in_wild)
            }
            // As PostgreSQL names it, and not by its text.
            SelectItem::UnnamedExpr(expr) => (expr.clone(), name_of(expr), expr.to_string(), true),
            SelectItem::ExprWithAlias { expr, alias } => (expr.clone(), alias.value.clone(), alias.value.clone(), false),
            _ => continue,
        };
        if clashes || seen.contains(&told_by) {
            *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', format!("{name}{MARK}{place}")) };
        }
        seen.push(told_by);
    }
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect();
    Expr::Function(Function {
        name: named(&[name]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: vec![] }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn truth(value: bool) -> Expr {
    Expr::Value(Value::Boolean(value).into())
}

fn string(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.into()).into())
}

/// What follows it in a column's name tells columns apart and is not shown.
pub(crate) const MARK: char = '\u{1}';
