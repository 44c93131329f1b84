//! Window functions: OVER (PARTITION BY … ORDER BY … frame), without a bound on ranks.
//!
//! Functions over one partition and order are one node of DataFusion's plan, and one operator of ours.

use datafusion_expr::expr::WindowFunction;
use datafusion_expr::logical_plan::Window;
use datafusion_expr::{Expr, WindowFrameBound, WindowFunctionDefinition};

use crate::lower::{Lowered, distinct_names, node, order, over as over_names, refused, unaliased};
use crate::{Error, Plan};

pub(crate) fn over(window: &Window) -> Result<Lowered, Error> {
    let (input, schema) = (node(&window.input, Vec::new())?.renamed_to_itself(), window.input.schema());
    let mut names = distinct_names(&window.schema);
    let added = names.split_off(input.names.len());
    let taken = |name: &String| input.names.contains(name);
    let added: Vec<String> = added.into_iter().map(|name| if taken(&name) { format!("{name}#over") } else { name }).collect();
    let mut plan = input.plan;
    for (expr, name) in window.window_expr.iter().zip(&added) {
        let Expr::WindowFunction(function) = unaliased(expr) else { return Err(refused("a window function of this form")) };
        supported(function)?;
        let params = &function.params;
        let partition =
            params.partition_by.iter().map(|expr| over_names(expr, schema, &input.names)).collect::<Result<Vec<_>, _>>()?;
        let order = order(&params.order_by, schema, &input.names)?;
        let call = (over_names(unaliased(expr), schema, &input.names)?, name.clone());
        plan = match plan {
            Plan::Over { input, partition: same, order: same_order, mut calls }
                if same == partition && same_order == order && name != &added[0] =>
            {
                calls.push(call);
                Plan::Over { input, partition, order, calls }
            }
            other => Plan::Over { input: Box::new(other), partition, order, calls: vec![call] },
        };
    }
    let names = input.names.into_iter().chain(added).collect();
    Ok(Lowered { plan, names })
}

/// An aggregate over a frame that slides must give up rows again.
fn supported(function: &WindowFunction) -> Result<(), Error> {
    let WindowFunctionDefinition::AggregateUDF(aggregate) = &function.fun else { return Ok(()) };
    let slides = !matches!(&function.params.window_frame.start_bound, WindowFrameBound::Preceding(rows) if rows.is_null());
    if slides && !SLIDING.contains(&aggregate.name()) {
        return Err(refused(&format!("{}(…) OVER a frame that does not begin with the partition", aggregate.name())));
    }
    Ok(())
}

/// Aggregates that DataFusion can take rows from.
const SLIDING: [&str; 5] = ["count", "sum", "avg", "min", "max"];
