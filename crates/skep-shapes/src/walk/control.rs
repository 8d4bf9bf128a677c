//! Operators whose rule walks a graph in an attribute: `If`, `Loop`, `Scan`.

use std::rc::Rc;

use skep_proto::onnx::GraphProto;
use skep_types::Shape;

use super::{GraphWalk, NodeStop};
use crate::{
    call::{Datum, OperatorCall, axis},
    element::ElementType,
    error::{InferError, RuleRefusal},
    fact::{ElementValues, Fact, KnownFrom},
    scope::NameScope,
};

/// A loop whose number of rounds is known is followed round by round up to this many, where its tensors change shape.
const MAX_ROUNDS: i64 = 1024;

pub(super) type ControlRule = for<'a> fn(
    &mut GraphWalk<'a>,
    &NameScope<'a, '_>,
    &OperatorCall<'a, '_>,
) -> Result<Vec<Datum<'a>>, NodeStop>;

pub(super) fn rule(domain: &str, operator: &str) -> Option<ControlRule> {
    match (domain, operator) {
        ("", "If") => Some(branch),
        ("", "Loop") => Some(repeat),
        ("", "Scan") => Some(scan),
        _ => None,
    }
}

/// The outputs of the branch that the condition chooses; where the condition is known only in a run, those of both.
fn branch<'a>(
    walk: &mut GraphWalk<'a>,
    scope: &NameScope<'a, '_>,
    call: &OperatorCall<'a, '_>,
) -> Result<Vec<Datum<'a>>, NodeStop> {
    let condition = call.input(0)?.int();
    let mut run = |name| -> Result<Vec<Datum<'a>>, NodeStop> {
        walk.graph(scope, call.node, call.graph(name)?, Vec::new())
    };
    if let Some(condition) = condition {
        return run(if condition == 0 {
            "else_branch"
        } else {
            "then_branch"
        });
    }
    // No run takes a branch that these shapes make impossible.
    let impossible = |stop: &NodeStop| matches!(stop, NodeStop::Within(InferError::Node { .. }));
    let (one, other) = match (run("then_branch"), run("else_branch")) {
        (Ok(one), Ok(other)) => (one, other),
        (Ok(only), Err(stop)) | (Err(stop), Ok(only)) if impossible(&stop) => {
            return Ok(only.into_iter().map(of_run).collect());
        }
        (Err(stop), _) | (_, Err(stop)) => return Err(stop),
    };
    if one.len() != other.len() {
        return Err(RuleRefusal::invalid("has branches with different numbers of outputs").into());
    }
    if one.iter().zip(&other).all(|(one, other)| alike(one, other)) {
        return Ok(one.into_iter().map(of_run).collect());
    }
    let why = format!(
        "its branches give different shapes, and {} chooses",
        call.name(0)
    );
    Err(RuleRefusal::Open(why).into())
}

/// A tensor or sequence whose values are known only in a run.
fn of_run<'a>(datum: Datum<'a>) -> Datum<'a> {
    match datum {
        Datum::Tensor(fact) => Datum::Tensor(fact.without_value()),
        Datum::Sequence(facts) => {
            Datum::Sequence(Rc::new(facts.iter().map(Fact::without_value).collect()))
        }
    }
}

fn alike(one: &Datum<'_>, other: &Datum<'_>) -> bool {
    let same =
        |one: &Fact<'_>, other: &Fact<'_>| one.element == other.element && one.shape == other.shape;
    match (one, other) {
        (Datum::Tensor(one), Datum::Tensor(other)) => same(one, other),
        (Datum::Sequence(one), Datum::Sequence(other)) => {
            one.len() == other.len() && one.iter().zip(&**other).all(|(a, b)| same(a, b))
        }
        _ => false,
    }
}

/// A round's number or a condition.
fn scalar<'a>(element: ElementType, value: Option<i64>) -> Datum<'a> {
    let mut fact = Fact::of_run(element, Shape::scalar());
    if let Some(value) = value {
        fact = Fact::of_values(element, Shape::scalar(), ElementValues::Ints(vec![value]));
        fact.known = KnownFrom::Shapes;
    }
    Datum::Tensor(fact)
}

fn truth(datum: Option<&Datum<'_>>) -> Option<bool> {
    match datum? {
        Datum::Tensor(fact) => fact.int().map(|value| value != 0),
        Datum::Sequence(_) => None,
    }
}

/// `Loop`: one round is enough when it keeps the shapes of the tensors that it carries along. Otherwise, or where
/// outputs have a row for each round, the number of rounds must be known.
fn repeat<'a>(
    walk: &mut GraphWalk<'a>,
    scope: &NameScope<'a, '_>,
    call: &OperatorCall<'a, '_>,
) -> Result<Vec<Datum<'a>>, NodeStop> {
    let body = call.graph("body")?;
    let carried: Vec<Datum<'a>> = carried(call, 2)?;
    let rounds = call.optional(0).and_then(Fact::int);
    let starts = match call.inputs.get(1).copied().flatten() {
        None => Some(true),
        condition => truth(condition),
    };
    if let Some(rounds) = rounds
        && starts.is_some()
        && (0..=MAX_ROUNDS).contains(&rounds)
    {
        let followed = follow(
            walk,
            scope,
            call,
            body,
            carried.clone(),
            rounds,
            starts == Some(true),
        );
        match followed {
            Err(
                NodeStop::Refused(RuleRefusal::Open(_))
                | NodeStop::Within(InferError::Undetermined { .. }),
            ) => {}
            other => return other,
        }
    }
    // Any round: its number and what it carries may be anything.
    let mut inputs = vec![
        scalar(ElementType::INT64, None),
        scalar(ElementType::BOOL, None),
    ];
    inputs.extend(carried.iter().cloned().map(of_run));
    let outputs = walk.graph(scope, call.node, body, inputs)?;
    let (condition, kept, rows) = parts(&outputs, carried.len())?;
    if let Some(at) = (0..kept.len()).find(|&at| !alike(&carried[at], &kept[at])) {
        let why = format!(
            "{} changes its shape from round to round",
            call.name(at + 2)
        );
        return Err(RuleRefusal::Open(why).into());
    }
    let mut results: Vec<Datum<'a>> = kept.iter().cloned().map(of_run).collect();
    let all_rounds =
        rounds.filter(|_| starts == Some(true) && truth(Some(condition)) == Some(true));
    for row in rows {
        let Some(rounds) = all_rounds else {
            return Err(RuleRefusal::Open("the number of its rounds".to_owned()).into());
        };
        results.push(stacked(row, rounds, 0)?);
    }
    Ok(results)
}

/// What a loop or scan carries from round to round.
fn carried<'a>(call: &OperatorCall<'a, '_>, from: usize) -> Result<Vec<Datum<'a>>, RuleRefusal> {
    let inputs = call.inputs.iter().skip(from);
    let carried = inputs
        .map(|datum| datum.cloned())
        .collect::<Option<Vec<_>>>();
    carried.ok_or_else(|| RuleRefusal::invalid("leaves out a tensor that it carries along"))
}

/// What a loop's body gives: its condition, what it carries along, rows of outputs.
fn parts<'d, 'a>(
    outputs: &'d [Datum<'a>],
    carried: usize,
) -> Result<(&'d Datum<'a>, &'d [Datum<'a>], &'d [Datum<'a>]), RuleRefusal> {
    match outputs.split_first() {
        Some((condition, rest)) if rest.len() >= carried => {
            let (kept, rows) = rest.split_at(carried);
            Ok((condition, kept, rows))
        }
        _ => Err(RuleRefusal::invalid("has a body with too few outputs")),
    }
}

/// Rows of one shape, one a round, as one tensor.
fn stacked<'a>(row: &Datum<'a>, rounds: i64, axis: usize) -> Result<Datum<'a>, RuleRefusal> {
    let Datum::Tensor(row) = row else {
        return Err(RuleRefusal::invalid(
            "has a body that gives rows which are no tensors",
        ));
    };
    let rounds = usize::try_from(rounds.max(0)).unwrap_or(0);
    let mut dims = row.dims().to_vec();
    dims.insert(axis.min(dims.len()), rounds);
    let shape =
        Shape::new(&dims).map_err(|error| RuleRefusal::Invalid(format!("gives {error}")))?;
    Ok(Datum::Tensor(Fact::of_run(row.element, shape)))
}

/// A loop round by round, while its condition is known.
fn follow<'a>(
    walk: &mut GraphWalk<'a>,
    scope: &NameScope<'a, '_>,
    call: &OperatorCall<'a, '_>,
    body: &'a GraphProto,
    mut carried: Vec<Datum<'a>>,
    rounds: i64,
    starts: bool,
) -> Result<Vec<Datum<'a>>, NodeStop> {
    let mut rows: Option<Vec<Datum<'a>>> = None;
    let mut done = 0;
    let mut goes_on = starts;
    while goes_on && done < rounds {
        let mut inputs = vec![
            scalar(ElementType::INT64, Some(done)),
            scalar(ElementType::BOOL, Some(1)),
        ];
        inputs.extend(carried.iter().cloned());
        let outputs = walk.graph(scope, call.node, body, inputs)?;
        let (condition, kept, row) = parts(&outputs, carried.len())?;
        match &rows {
            None => rows = Some(row.to_vec()),
            Some(rows) if rows.iter().zip(row).all(|(a, b)| alike(a, b)) => {}
            Some(_) => return Err(RuleRefusal::invalid("gives rows of different shapes").into()),
        }
        goes_on = truth(Some(condition))
            .ok_or_else(|| RuleRefusal::Open("the number of its rounds".to_owned()))?;
        carried = kept.to_vec();
        done += 1;
    }
    if rows.is_none() && call.node.output.len() > carried.len() {
        return Err(RuleRefusal::Open(
            "it runs for no round, so its rows have no shape".to_owned(),
        )
        .into());
    }
    for row in rows.iter().flatten() {
        carried.push(stacked(row, done, 0)?);
    }
    Ok(carried)
}

/// `Scan`, from operator set 9 on: states that are carried along, and inputs that are taken apart along an axis.
fn scan<'a>(
    walk: &mut GraphWalk<'a>,
    scope: &NameScope<'a, '_>,
    call: &OperatorCall<'a, '_>,
) -> Result<Vec<Datum<'a>>, NodeStop> {
    if call.version < 9 {
        let why = "operator sets before 9 have another `Scan`, which is not followed";
        return Err(RuleRefusal::Open(why.to_owned()).into());
    }
    let body = call.graph("body")?;
    let scanned = usize::try_from(call.int("num_scan_inputs", 0)).unwrap_or(0);
    let Some(states) = call.inputs.len().checked_sub(scanned) else {
        return Err(RuleRefusal::invalid("has fewer inputs than `num_scan_inputs`").into());
    };
    let chosen = |name: &str, at: usize| call.ints(name).and_then(|axes| axes.get(at)).copied();
    let carried = carried(call, 0)?;
    let mut rounds: Option<usize> = None;
    let mut inputs: Vec<Datum<'a>> = carried[..states].iter().cloned().map(of_run).collect();
    for at in 0..scanned {
        let fact = call.input(states + at)?;
        let axis = axis(
            chosen("scan_input_axes", at).unwrap_or(0),
            fact.shape.rank(),
        )?;
        let mut dims = fact.dims().to_vec();
        let length = dims.remove(axis);
        if *rounds.get_or_insert(length) != length {
            return Err(RuleRefusal::invalid("takes apart inputs of different lengths").into());
        }
        let shape = Shape::new(&dims).map_err(|error| RuleRefusal::Invalid(error.to_string()))?;
        inputs.push(Datum::Tensor(Fact::of_run(fact.element, shape)));
    }
    let rounds = rounds.and_then(|rounds| i64::try_from(rounds).ok());
    let rounds = rounds.ok_or_else(|| RuleRefusal::invalid("takes no input apart"))?;
    let outputs = walk.graph(scope, call.node, body, inputs)?;
    if outputs.len() < states {
        return Err(RuleRefusal::invalid("has a body with too few outputs").into());
    }
    let (kept, rows) = outputs.split_at(states);
    if let Some(at) = (0..states).find(|&at| !alike(&carried[at], &kept[at])) {
        let why = format!("{} changes its shape from round to round", call.name(at));
        return Err(RuleRefusal::Open(why).into());
    }
    let mut results: Vec<Datum<'a>> = kept.iter().cloned().map(of_run).collect();
    for (at, row) in rows.iter().enumerate() {
        let rank = match row {
            Datum::Tensor(fact) => fact.shape.rank() + 1,
            Datum::Sequence(_) => 1,
        };
        let axis = axis(chosen("scan_output_axes", at).unwrap_or(0), rank)?;
        results.push(stacked(row, rounds, axis)?);
    }
    debug_assert!(results.iter().all(|datum| datum.known() == KnownFrom::Run));
    Ok(results)
}
