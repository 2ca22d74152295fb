//! `healthyWhen`: a rule of a user's own about one object, in CEL, the expression language of Kubernetes.
//!
//! Whoever may write a scope may write a rule, and whoever may write an object may choose what it runs on, so a rule
//! is bounded before it runs: its length, nesting and nodes when it is compiled, the object's size and the steps that
//! both together can take when it is evaluated. What could multiply data is refused with a sentence that says so:
//! loops in loops in loops, `map`, and additions in a loop. Nothing of the language reaches outside the object: no clock, no randomness, no other object.

use {
    super::{field, healthy},
    cel::{
        Context, Env, ExecutionError, IdedExpr, Value as CelValue,
        common::ast::{ComprehensionExpr, EntryExpr, Expr, operators},
        objects::{Key, Map},
        parser::PrattParser,
    },
    healthscope_shared::{
        health::{Health, Reason, Verdict},
        one_line,
    },
    serde_json::Value,
    std::{
        collections::HashMap,
        fmt,
        sync::{Arc, LazyLock},
    },
};

/// Longest expression; `maxLength` in the schema says the same.
pub(super) const MAX_EXPRESSION_BYTES: usize = 1024;
/// Most parts of an expression: names, fields, values, operators. A generous rule has fifty.
const MAX_NODES: usize = 200;
/// Deepest nesting of parts in each other: what parsing and evaluation need of the stack, some 35 KiB for each in a
/// debug build. Real rules are ten deep.
const MAX_NESTING: usize = 20;
/// Deepest nesting of loops.
const MAX_LOOPS: usize = 2;
/// Most additions: each may copy the whole object.
const MAX_ADDITIONS: usize = 8;
/// Largest object, in bytes of its keys and values; etcd holds 1.5 MiB.
const MAX_OBJECT_BYTES: usize = 256 * 1024;
/// Deepest nesting of an object; what the API server's own objects need is about 20.
const MAX_OBJECT_NESTING: usize = 64;
/// Most steps of an evaluation, estimated as nodes times the longest list to the power of the loops: tens of
/// milliseconds at worst, microseconds in normal life.
const MAX_STEPS: usize = 500_000;
/// So many bytes are looked through in the time of a step.
const BYTES_A_STEP: usize = 256;

/// Functions that a rule may call, beside the operators and the macros `has`, `all`, `exists`, `exists_one`, `filter`.
const FUNCTIONS: [&str; 9] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "int",
    "uint",
    "double",
    "string",
    "type",
];

/// The standard functions; the same for all rules.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A rule that has been compiled and found to be bounded.
#[derive(Clone)]
pub struct HealthyWhen(Arc<Compiled>);

struct Compiled {
    expression: Box<str>,
    root: IdedExpr,
    size: Size,
}

/// What counts for the steps of an evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    nodes: usize,
    additions: usize,
    /// Loops in each other, a search through a list within a loop counted as one.
    loops: usize,
    /// The longest list that is written out.
    longest: usize,
    /// Whether a round of a loop may look at all of the object.
    looks_at_whole: bool,
}

impl fmt::Debug for HealthyWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HealthyWhen").field(&self.0.expression).finish()
    }
}

impl PartialEq for HealthyWhen {
    fn eq(&self, other: &Self) -> bool {
        self.0.expression == other.0.expression
    }
}

impl HealthyWhen {
    /// Compiles an expression.
    ///
    /// # Errors
    /// One line for the author of the rule: what is wrong and what to write instead.
    pub fn compile(expression: &str) -> Result<Self, String> {
        if expression.len() > MAX_EXPRESSION_BYTES {
            return Err(format!(
                "healthyWhen has {} bytes; at most {MAX_EXPRESSION_BYTES} are allowed",
                expression.len()
            ));
        }
        check_brackets(expression)?;
        let root = PrattParser::new()
            .max_recursion_depth(MAX_NESTING as u16)
            .max_expression_node_count(MAX_EXPRESSION_BYTES)
            .error_reporting_limit(1)
            .parse(expression)
            .map_err(|errors| {
                let first = errors.errors.first().map(|error| error.msg.as_str());
                format!(
                    "healthyWhen is not CEL: {}",
                    one_line(first.unwrap_or("it cannot be read"), 160)
                )
            })?;
        let size = measure(&root)?;
        Ok(Self(Arc::new(Compiled {
            expression: expression.into(),
            root,
            size,
        })))
    }

    /// The expression as it was written.
    #[must_use]
    pub fn expression(&self) -> &str {
        &self.0.expression
    }

    /// What the rule says of an object of this kind.
    pub(super) fn verdict(&self, kind: &str, object: &Value) -> Verdict {
        match self.evaluate(object) {
            Ok(true) => healthy(),
            Ok(false) => Verdict::new(Health::Unhealthy, Reason::RULE_NOT_MET, self.unmet(kind, object)),
            Err(error) => Verdict::new(
                Health::Unknown,
                Reason::RULE_FAILED,
                format!("healthyWhen cannot be evaluated: {error}"),
            ),
        }
    }

    /// The verdict instead of any rule about a Secret, whose contents must show nowhere.
    pub(super) fn refuse_secret() -> Verdict {
        Verdict::new(
            Health::Unknown,
            Reason::RULE_FAILED,
            "healthyWhen is not evaluated on Secrets; remove it from the scope",
        )
    }

    /// In the object's own words where it has some, else in the rule's.
    fn unmet(&self, kind: &str, object: &Value) -> String {
        if let Some(phase) = field::text(object, &["status", "phase"]).filter(|phase| !phase.is_empty()) {
            return format!("{kind} phase is {phase}");
        }
        let said = field::condition_that_is(object, "Ready", "False")
            .and_then(|ready| field::text(ready, &["message"]))
            .filter(|said| !said.trim().is_empty());
        match said {
            Some(said) => format!("{kind} is not ready: {said}"),
            None => format!("{kind} does not meet healthyWhen: {}", self.0.expression),
        }
    }

    fn evaluate(&self, object: &Value) -> Result<bool, String> {
        let mut reading = Reading {
            left: MAX_OBJECT_BYTES,
            longest: self.0.size.longest,
        };
        let value = reading.value(object, 0, &LEFT_OUT)?;
        let size = self.0.size;
        let rounds = (0..size.loops).fold(1, |rounds: usize, _| {
            rounds.saturating_mul(reading.longest.max(1))
        });
        let read = MAX_OBJECT_BYTES - reading.left;
        let weight = if size.looks_at_whole {
            1 + read / BYTES_A_STEP
        } else {
            1
        };
        if size.nodes.saturating_mul(rounds).saturating_mul(weight) > MAX_STEPS {
            return Err(format!(
                "the object ({read} bytes, up to {} entries in a list) is too large for this rule's loops; \
                 compare with the loop's variable or use fewer loops",
                reading.longest
            ));
        }
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        context.add_variable_from_value("object", value);
        match CelValue::resolve(&self.0.root, &context) {
            Ok(CelValue::Bool(answer)) => Ok(answer),
            Ok(other) => Err(format!(
                "it gives {}; it must be true or false",
                article(&other.type_of().to_string())
            )),
            Err(error) => Err(self.explain(&error, object)),
        }
    }

    /// An error in words that say what to do, and never the values at hand, which may be large.
    fn explain(&self, error: &ExecutionError, object: &Value) -> String {
        match error {
            ExecutionError::NoSuchKey(key) => {
                let mut path = None;
                find_missing(&self.0.root, key, object, &mut path);
                match path {
                    Some(path) => format!("{path}: no such key; guard it with has({path}) && ..."),
                    None => format!(
                        "no such key: {}; guard it with has(...) && ...",
                        one_line(key, 80)
                    ),
                }
            }
            ExecutionError::NoSuchOverload(overload) => one_line(&overload.to_string(), 160),
            ExecutionError::IndexOutOfBounds(_) => {
                "a list is shorter than the index; ask for its size() first".into()
            }
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                "it divides by zero".into()
            }
            ExecutionError::Overflow(..) => "a number is too large".into(),
            ExecutionError::UnexpectedType { got, want } => {
                format!("found {} instead of {}", article(got), article(want))
            }
            ExecutionError::FunctionError { function, message } => {
                format!("{}: {}", one_line(function, 40), one_line(message, 100))
            }
            ExecutionError::UndeclaredReference(name) => format!("{} is not known", one_line(name, 80)),
            _ => "its values cannot be compared or combined like this".into(),
        }
    }
}

fn article(what: &str) -> String {
    let what = one_line(what, 40);
    if what.starts_with(['a', 'e', 'i', 'o']) {
        format!("an {what}")
    } else {
        format!("a {what}")
    }
}

/// Refuses deep nesting before anything that recurses sees it. Brackets in texts count too, which no sane rule minds.
fn check_brackets(expression: &str) -> Result<(), String> {
    let mut open = 0_usize;
    for byte in expression.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_NESTING {
            return Err(too_nested());
        }
    }
    Ok(())
}

fn too_nested() -> String {
    format!("healthyWhen is nested more than {MAX_NESTING} deep; write it flatter")
}

/// How large an expression's value can be, within a loop; later ones can be larger.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// Written out, a number, or true or false.
    Small,
    /// Part of the item that a loop is at: all rounds together see no more than the object.
    Item,
    /// Anything else: every round may see the whole object.
    Whole,
}

fn measure(root: &IdedExpr) -> Result<Size, String> {
    let mut walk = Walk::default();
    walk.expression(root, 0)?;
    Ok(walk.size)
}

/// Goes through an expression, measures it, and refuses what is not bounded.
#[derive(Default)]
struct Walk<'a> {
    size: Size,
    /// Variables of the loops around the expression, innermost last.
    variables: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    fn expression(&mut self, expression: &'a IdedExpr, nesting: usize) -> Result<Origin, String> {
        if nesting > MAX_NESTING {
            return Err(too_nested());
        }
        self.size.nodes += 1;
        if self.size.nodes > MAX_NODES {
            return Err(format!(
                "healthyWhen has more than {MAX_NODES} parts; write it shorter"
            ));
        }
        let nesting = nesting + 1;
        match &expression.expr {
            Expr::Literal(_) => Ok(Origin::Small),
            Expr::Ident(name) if self.variables.contains(&name.as_str()) => Ok(Origin::Item),
            Expr::Ident(name) if name == "object" => Ok(Origin::Whole),
            Expr::Ident(name) => Err(format!(
                "healthyWhen names {}; the only name is object, as in object.status.phase",
                one_line(name, 80)
            )),
            Expr::Select(select) => {
                let operand = self.expression(&select.operand, nesting)?;
                Ok(if select.test { Origin::Small } else { operand })
            }
            Expr::Call(call) => {
                let operands = call.target.as_deref().into_iter().chain(&call.args);
                let operands: Vec<Origin> = operands
                    .map(|operand| self.expression(operand, nesting))
                    .collect::<Result<_, _>>()?;
                self.call(&call.func_name, &operands)
            }
            Expr::List(list) => {
                self.size.longest = self.size.longest.max(list.elements.len());
                self.all(list.elements.iter(), nesting)
            }
            Expr::Map(map) => {
                self.size.longest = self.size.longest.max(map.entries.len());
                let mut parts = Vec::new();
                for entry in &map.entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) => parts.extend([&entry.key, &entry.value]),
                        EntryExpr::StructField(_) => return Err(cannot_make_objects()),
                    }
                }
                self.all(parts.into_iter(), nesting)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, nesting),
            Expr::Struct(_) => Err(cannot_make_objects()),
            Expr::Unspecified => Err("healthyWhen is not CEL: it cannot be read".into()),
        }
    }

    /// The largest of the parts.
    fn all(&mut self, parts: impl Iterator<Item = &'a IdedExpr>, nesting: usize) -> Result<Origin, String> {
        let mut largest = Origin::Small;
        for part in parts {
            largest = largest.max(self.expression(part, nesting)?);
        }
        Ok(largest)
    }

    fn call(&mut self, function: &str, operands: &[Origin]) -> Result<Origin, String> {
        let is_in_loop = !self.variables.is_empty();
        let first = operands.first().copied().unwrap_or(Origin::Whole);
        // A comparison looks at no more than the smaller side.
        let smaller = operands.iter().copied().min().unwrap_or(Origin::Whole);
        let (looked_at, result) = match function {
            operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::NEGATE
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
            | "type" => (Origin::Small, Origin::Small),
            operators::CONDITIONAL => {
                let branches = operands.iter().skip(1).copied().max();
                (Origin::Small, branches.unwrap_or(Origin::Whole))
            }
            operators::INDEX => (Origin::Small, first),
            operators::EQUALS
            | operators::NOT_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | "startsWith"
            | "endsWith" => (smaller, Origin::Small),
            operators::IN => {
                if is_in_loop {
                    // It goes through the list on its right.
                    self.size.loops = self.size.loops.max(self.variables.len() + 1);
                }
                (first, Origin::Small)
            }
            operators::ADD => {
                self.size.additions += 1;
                if self.size.additions > MAX_ADDITIONS {
                    return Err(format!("healthyWhen adds more than {MAX_ADDITIONS} times"));
                }
                if is_in_loop {
                    return Err("healthyWhen adds within a loop; compare the parts instead".into());
                }
                (Origin::Whole, Origin::Whole)
            }
            "size" | "contains" | "int" | "uint" | "double" => (first, Origin::Small),
            "string" => (first, first),
            other => return Err(unsupported(&one_line(other, 40))),
        };
        self.size.looks_at_whole |= is_in_loop && looked_at == Origin::Whole;
        Ok(result)
    }

    /// What the macros `all`, `exists`, `exists_one` and `filter` are turned into; `map` is refused, because it makes
    /// values that grow from loop to loop.
    fn comprehension(&mut self, made: &'a ComprehensionExpr, nesting: usize) -> Result<Origin, String> {
        self.expression(&made.iter_range, nesting)?;
        let (body, result) = body_of(made).ok_or_else(|| unsupported("map"))?;
        self.variables.push(&made.iter_var);
        if self.variables.len() > MAX_LOOPS {
            return Err(format!(
                "healthyWhen has loops nested more than {MAX_LOOPS} deep; all, exists, exists_one and filter are loops"
            ));
        }
        self.size.loops = self.size.loops.max(self.variables.len());
        self.expression(body, nesting)?;
        self.variables.pop();
        Ok(result)
    }
}

/// The condition that a loop asks of each item, and what comes out of it; `None` for `map`.
fn body_of(made: &ComprehensionExpr) -> Option<(&IdedExpr, Origin)> {
    let Expr::Call(step) = &made.loop_step.expr else {
        return None;
    };
    match (step.func_name.as_str(), step.args.as_slice()) {
        (operators::LOGICAL_AND | operators::LOGICAL_OR, [_, body]) => Some((body, Origin::Small)),
        (operators::CONDITIONAL, [body, kept, _]) => {
            let Expr::Call(kept) = &kept.expr else { return None };
            match &kept.args.get(1)?.expr {
                // exists_one counts.
                Expr::Literal(_) => Some((body, Origin::Small)),
                // filter keeps the item itself.
                Expr::List(list) => match list.elements.as_slice() {
                    [item] if item.expr == Expr::Ident(made.iter_var.clone()) => Some((body, Origin::Whole)),
                    _ => None,
                },
                _ => None,
            }
        }
        _ => None,
    }
}

fn cannot_make_objects() -> String {
    "healthyWhen makes an object of a type; compare its fields instead".into()
}

fn unsupported(function: &str) -> String {
    format!(
        "healthyWhen uses {function}, which is not supported; there are has, all, exists, exists_one, filter, {}",
        FUNCTIONS.join(", ")
    )
}

/// What no rule is about, and what is often the largest part of an object.
const LEFT_OUT: [&[&str]; 2] = [
    &["metadata", "managedFields"],
    &[
        "metadata",
        "annotations",
        "kubectl.kubernetes.io/last-applied-configuration",
    ],
];

/// Reads an object into the evaluator's values, within limits.
struct Reading {
    left: usize,
    longest: usize,
}

impl Reading {
    /// `left_out` are paths from here.
    fn value(&mut self, value: &Value, nesting: usize, left_out: &[&[&str]]) -> Result<CelValue, String> {
        if nesting > MAX_OBJECT_NESTING {
            return Err(format!(
                "the object is nested more than {MAX_OBJECT_NESTING} deep"
            ));
        }
        self.take(8)?;
        Ok(match value {
            Value::Null => CelValue::Null,
            Value::Bool(value) => CelValue::Bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => CelValue::Int(number),
                (None, Some(number)) => CelValue::UInt(number),
                (None, None) => CelValue::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => {
                self.take(text.len())?;
                CelValue::String(Arc::new(text.clone()))
            }
            Value::Array(items) => {
                self.longest = self.longest.max(items.len());
                let items: Vec<CelValue> = items
                    .iter()
                    .map(|item| self.value(item, nesting + 1, &[]))
                    .collect::<Result<_, _>>()?;
                CelValue::List(Arc::new(items))
            }
            Value::Object(fields) => {
                self.longest = self.longest.max(fields.len());
                let mut map = HashMap::with_capacity(fields.len());
                for (key, value) in fields {
                    let left_out: Vec<&[&str]> = left_out
                        .iter()
                        .filter_map(|path| path.split_first())
                        .filter(|(first, _)| *first == key)
                        .map(|(_, rest)| rest)
                        .collect();
                    if left_out.iter().any(|rest| rest.is_empty()) {
                        continue;
                    }
                    self.take(key.len())?;
                    map.insert(
                        Key::from(key.as_str()),
                        self.value(value, nesting + 1, &left_out)?,
                    );
                }
                CelValue::Map(Map { map: Arc::new(map) })
            }
        })
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| format!("the object is larger than {} KiB", MAX_OBJECT_BYTES / 1024))?;
        Ok(())
    }
}

/// Finds the first `object.a.b` in the expression that ends in `key` and is not in the object.
fn find_missing(expression: &IdedExpr, key: &str, object: &Value, found: &mut Option<String>) {
    if found.is_some() {
        return;
    }
    let mut parts: Vec<&IdedExpr> = Vec::new();
    match &expression.expr {
        Expr::Select(select) => {
            if select.field == key
                && !select.test
                && let Some(path) = plain_path(expression)
                && field::at(object, &path).is_none()
            {
                *found = Some(one_line(&format!("object.{}", path.join(".")), 120));
                return;
            }
            parts.push(&select.operand);
        }
        Expr::Call(call) => parts.extend(call.target.as_deref().into_iter().chain(&call.args)),
        Expr::List(list) => parts.extend(&list.elements),
        Expr::Comprehension(made) => parts.extend([&made.iter_range, &made.loop_step]),
        Expr::Map(_) | Expr::Struct(_) | Expr::Literal(_) | Expr::Ident(_) | Expr::Unspecified => {}
    }
    for part in parts {
        find_missing(part, key, object, found);
    }
}

/// The fields of `object.a.b`; `None` for anything else.
fn plain_path(expression: &IdedExpr) -> Option<Vec<&str>> {
    match &expression.expr {
        Expr::Ident(name) if name == "object" => Some(Vec::new()),
        Expr::Select(select) => {
            let mut path = plain_path(&select.operand)?;
            path.push(&select.field);
            Some(path)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
