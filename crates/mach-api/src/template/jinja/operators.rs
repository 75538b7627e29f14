//! Operators that print values, or format them, as Python does. minijinja lets neither be replaced, so the template's
//! source calls functions in their place: `a ~ b`, `a % b`, attributes named as a method of `dict` is, and `a + b` where
//! text is marked as safe.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr};
use minijinja::{Environment, Error, Value};

use super::escape;
use super::walk::{self, Node};
use crate::template::allowance::take;
use crate::template::python::{containers, format, text};

const CONCAT: &str = "__concat__";
const REMAINDER: &str = "__mod__";
const SUM: &str = "__add__";
const ATTRIBUTE: &str = "__getattr__";

pub(super) fn install(env: &mut Environment<'static>) {
    env.add_function(CONCAT, |a: &Value, b: &Value| -> Result<String, Error> {
        let (a, b) = (text::str(a), text::str(b));
        take(a.len() + b.len())?;
        Ok(a + &b)
    });
    env.add_function(REMAINDER, remainder);
    env.add_function(SUM, sum);
    env.add_function(ATTRIBUTE, |value: &Value, name: String| containers::attribute(value, &name));
}

fn remainder(state: &minijinja::State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    match a.as_str() {
        Some(template) => {
            let out = format::percent(template, b)?;
            state.consume_fuel(out.len() as u64 / 64)?;
            Ok(Value::from(out))
        }
        None => arithmetic("a % b", a, b),
    }
}

/// `a + b`: text is escaped beside text that is marked as safe, although nothing else escapes.
fn sum(a: &Value, b: &Value) -> Result<Value, Error> {
    match (a.as_str(), b.as_str()) {
        (Some(left), Some(right)) if a.is_safe() != b.is_safe() => {
            take(6 * (left.len() + right.len()))?;
            let out =
                if a.is_safe() { left.to_owned() + &escape::html(right) } else { escape::html(left) + right };
            Ok(Value::from_safe_string(out))
        }
        (Some(left), Some(right)) if a.is_safe() => {
            take(left.len() + right.len()).map(|()| Value::from_safe_string(format!("{left}{right}")))
        }
        _ => arithmetic("a + b", a, b),
    }
}

/// An operation as minijinja does it.
fn arithmetic(operation: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    static ENGINE: std::sync::OnceLock<Environment<'static>> = std::sync::OnceLock::new();
    let engine = ENGINE.get_or_init(Environment::empty);
    // This environment counts nothing.
    take(a.as_str().map_or(0, str::len) + b.as_str().map_or(0, str::len))?;
    let context = Value::from_pairs([("a", a.clone()), ("b", b.clone())]);
    engine.compile_expression(operation)?.eval(context)
}

struct Edit {
    start: usize,
    end: usize,
    text: String,
}

/// The source with the operators replaced. Lines stay where they are.
pub(in crate::template) fn rewrite(source: &str, root: &minijinja::machinery::ast::Stmt<'_>) -> String {
    let mut edits = Vec::new();
    let mut marks_safe = false;
    walk::walk(root, &mut |node| {
        if let Node::Expr(Expr::Filter(filter)) = node {
            marks_safe |= matches!(filter.name, "safe" | "escape" | "e" | "forceescape");
        }
    });
    walk::walk(root, &mut |node| {
        if let Node::Expr(expr) = node {
            edit(source, expr, marks_safe, &mut edits);
        }
    });
    // Those at one place stay in order, which is outer before inner.
    edits.sort_by_key(|edit| edit.start);
    let (mut out, mut at) = (String::with_capacity(source.len()), 0);
    for edit in edits {
        out.push_str(source.get(at..edit.start).unwrap_or_default());
        out.push_str(&edit.text);
        at = edit.end.max(at);
    }
    out.push_str(source.get(at..).unwrap_or_default());
    out
}

fn edit(source: &str, expr: &Expr<'_>, marks_safe: bool, edits: &mut Vec<Edit>) {
    let mut put = |start: usize, end: usize, text: String| edits.push(Edit { start, end, text });
    match expr {
        Expr::BinOp(op) => {
            let (function, sign) = match op.op {
                BinOpKind::Concat => (CONCAT, '~'),
                BinOpKind::Rem => (REMAINDER, '%'),
                BinOpKind::Add if marks_safe => (SUM, '+'),
                _ => return,
            };
            let (start, end) = (op.span().start_offset as usize, op.span().end_offset as usize);
            let left = op.left.span().end_offset as usize;
            // Between the operands there are only white space and brackets.
            let Some(at) = source.get(left..end).and_then(|text| text.find(sign)) else { return };
            put(start, start, format!("{function}("));
            put(left + at, left + at + 1, ",".into());
            put(end, end, ")".into());
        }
        Expr::Const(literal) if literal.value.as_str().is_some() => {
            let (start, end) = (literal.span().start_offset as usize, literal.span().end_offset as usize);
            let text = source.get(start..end).unwrap_or_default();
            for (at, len, plain) in escapes(text) {
                put(start + at, start + at + len, plain);
            }
        }
        // The walk leaves out attributes that are called: those are methods.
        Expr::GetAttr(attr) if containers::DICT.contains(&attr.name) => {
            let end = attr.span().end_offset as usize;
            let Some(start) = begin(&attr.expr) else { return };
            let Some(dot) = source.get(start..end).and_then(|text| text.rfind('.')) else { return };
            put(start, start, format!("{ATTRIBUTE}("));
            put(start + dot, end, format!(", '{}')", attr.name));
        }
        _ => {}
    }
}

/// Escapes in literals that Python knows and minijinja does not, or the other way round: where, how long, and what says
/// the same to minijinja.
fn escapes(literal: &str) -> Vec<(usize, usize, String)> {
    let mut out = Vec::new();
    let mut chars = literal.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != '\\' {
            continue;
        }
        let Some((_, escaped)) = chars.next() else { break };
        let plain = match escaped {
            '/' => Some((2, "\\\\/".to_owned())),
            'a' => Some((2, "\\x07".to_owned())),
            'v' => Some((2, "\\x0b".to_owned())),
            '\n' => Some((2, String::new())),
            'U' => literal
                .get(at + 2..at + 10)
                .and_then(|digits| char::from_u32(u32::from_str_radix(digits, 16).ok()?))
                .filter(|c| !matches!(c, '\\' | '\'' | '"'))
                .map(|c| (10, c.to_string())),
            _ => None,
        };
        out.extend(plain.map(|(len, plain)| (at, len, plain)));
    }
    out
}

/// Where an expression begins, if no bracket is around what it begins with.
fn begin(expr: &Expr<'_>) -> Option<usize> {
    match expr {
        Expr::Var(var) => Some(var.span().start_offset as usize),
        Expr::Map(map) => Some(map.span().start_offset as usize),
        Expr::GetAttr(attr) => begin(&attr.expr),
        Expr::GetItem(item) => begin(&item.expr),
        Expr::Slice(slice) => begin(&slice.expr),
        Expr::Call(call) => begin(&call.expr),
        _ => None,
    }
}

/// The expression of an argument.
pub(super) fn argument<'a, 'b>(arg: &'b CallArg<'a>) -> &'b Expr<'a> {
    match arg {
        CallArg::Pos(expr)
        | CallArg::Kwarg(_, expr)
        | CallArg::PosSplat(expr)
        | CallArg::KwargSplat(expr) => expr,
    }
}
