//! Filters, tests, functions and methods that a template uses and nothing provides: found at start, not at a request.

use std::collections::BTreeSet;

use minijinja::machinery::ast::{CallArg, Expr, Stmt};
use minijinja::{Environment, context};

use super::walk::{self, Node};
use crate::template::python::methods;

/// Functions that are there without a definition in the template.
const FUNCTIONS: &[&str] = &[
    "caller",
    "cycler",
    "dict",
    "joiner",
    "loop",
    "namespace",
    "raise_exception",
    "range",
    "strftime_now",
    "super",
];

/// Filters whose first argument names a filter, and those where it or the second names a test.
const TAKES_FILTER: &[&str] = &["map"];
const TAKES_TEST: &[(&str, usize)] = &[("select", 0), ("reject", 0), ("selectattr", 1), ("rejectattr", 1)];

#[derive(Default)]
struct Names {
    filters: BTreeSet<String>,
    tests: BTreeSet<String>,
    functions: BTreeSet<String>,
    methods: BTreeSet<String>,
    statements: BTreeSet<&'static str>,
    /// Variables that are read.
    read: BTreeSet<String>,
    /// Variables that the template sets, and attributes.
    set: BTreeSet<String>,
    attributes: BTreeSet<String>,
    /// What is tested for being there before it is used.
    guarded: BTreeSet<String>,
}

/// What is missing, in words; `None` if nothing is.
pub(in crate::template) fn missing(root: &Stmt<'_>, env: &Environment<'_>) -> Option<String> {
    let mut names = Names::default();
    walk::walk(root, &mut |node| names.note(&node));
    let has = |kind: &str, name: &str| {
        env.compile_expression(if kind == "filter" { "name is filter" } else { "name is test" })
            .and_then(|test| test.eval(context! { name }))
            .is_ok_and(|answer| answer.is_true())
    };
    let mut out = Vec::new();
    out.extend(names.statements.iter().map(|name| format!("the statement `{name}`")));
    out.extend(
        names.filters.iter().filter(|name| !has("filter", name)).map(|name| format!("the filter `{name}`")),
    );
    out.extend(names.tests.iter().filter(|name| !has("test", name)).map(|name| format!("the test `{name}`")));
    // What a macro is called with beyond its arguments.
    let rest = ["varargs", "kwargs"]
        .iter()
        .filter(|name| names.read.contains(**name) && !names.set.contains(**name));
    out.extend(rest.map(|name| format!("the variable `{name}`")));
    let known = |name: &String| names.set.contains(name) || names.guarded.contains(name);
    let functions = names.functions.iter().filter(|name| !FUNCTIONS.contains(&name.as_str()) && !known(name));
    out.extend(functions.map(|name| format!("the function `{name}`")));
    let known = |name: &String| names.attributes.contains(name) || names.guarded.contains(name);
    let methods =
        names.methods.iter().filter(|name| !methods::KNOWN.contains(&name.as_str()) && !known(name));
    out.extend(methods.map(|name| format!("the method `{name}`")));
    if out.is_empty() { None } else { Some(out.join(", ")) }
}

impl Names {
    fn note(&mut self, node: &Node<'_, '_>) {
        match node {
            Node::Target(target) => self.target(target),
            Node::Stmt(stmt) => self.stmt(stmt),
            Node::Expr(expr) => self.expr(expr),
        }
    }

    fn target(&mut self, target: &Expr<'_>) {
        match target {
            Expr::Var(var) => _ = self.set.insert(var.id.to_owned()),
            Expr::GetAttr(attr) => _ = self.attributes.insert(attr.name.to_owned()),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.target(item)),
            Expr::List(list) => list.items.iter().for_each(|item| self.target(item)),
            _ => {}
        }
    }

    fn stmt(&mut self, stmt: &Stmt<'_>) {
        match stmt {
            Stmt::Macro(m) => _ = self.set.insert(m.name.to_owned()),
            Stmt::CallBlock(c) => self.call(&c.call.expr, &c.call.args),
            Stmt::Do(d) => self.call(&d.call.expr, &d.call.args),
            Stmt::Include(_) => _ = self.statements.insert("include"),
            Stmt::Import(_) | Stmt::FromImport(_) => _ = self.statements.insert("import"),
            Stmt::Extends(_) => _ = self.statements.insert("extends"),
            _ => {}
        }
    }

    fn expr(&mut self, expr: &Expr<'_>) {
        match expr {
            Expr::Var(var) => _ = self.read.insert(var.id.to_owned()),
            Expr::Filter(filter) => {
                self.filters.insert(filter.name.to_owned());
                if TAKES_FILTER.contains(&filter.name) {
                    self.filters.extend(text_argument(&filter.args, 0));
                }
                let test = TAKES_TEST.iter().find(|(name, _)| *name == filter.name);
                if let Some((_, place)) = test {
                    self.tests.extend(text_argument(&filter.args, *place));
                }
            }
            Expr::Test(test) => {
                self.tests.insert(test.name.to_owned());
                let name = match &test.expr {
                    Expr::Var(var) => Some(var.id),
                    Expr::GetAttr(attr) => Some(attr.name),
                    _ => None,
                };
                if matches!(test.name, "defined" | "undefined" | "callable") {
                    self.guarded.extend(name.map(str::to_owned));
                }
            }
            Expr::Call(call) => self.call(&call.expr, &call.args),
            Expr::Map(map) => {
                let keys = map.keys.iter().filter_map(Expr::as_const);
                self.attributes.extend(keys.filter_map(|key| key.as_str().map(str::to_owned)));
            }
            _ => {}
        }
    }

    fn call(&mut self, callee: &Expr<'_>, args: &[CallArg<'_>]) {
        match callee {
            Expr::Var(var) => _ = self.functions.insert(var.id.to_owned()),
            // `self.name()` prints a block.
            Expr::GetAttr(attr) if !matches!(&attr.expr, Expr::Var(var) if var.id == "self") => {
                self.methods.insert(attr.name.to_owned());
            }
            _ => {}
        }
        for arg in args {
            if let CallArg::Kwarg(name, _) = arg {
                self.attributes.insert((*name).to_owned());
            }
        }
    }
}

fn text_argument(args: &[CallArg<'_>], place: usize) -> Option<String> {
    match args.get(place) {
        Some(CallArg::Pos(expr)) => expr.as_const()?.as_str().map(str::to_owned),
        _ => None,
    }
}
