//! Walking over a template's syntax tree, outer before inner.

use minijinja::machinery::ast::{CallArg, Expr, Macro, Stmt};

use super::operators::argument;

/// What is met.
pub(super) enum Node<'n, 'a> {
    /// A statement.
    Stmt(&'n Stmt<'a>),
    /// An expression that is read.
    Expr(&'n Expr<'a>),
    /// A place that is written to: by `set`, `for`, `with` or the arguments of a macro.
    Target(&'n Expr<'a>),
}

type Visit<'v> = dyn FnMut(Node<'_, '_>) + 'v;

/// Walks over a statement and all inside of it.
pub(super) fn walk(stmt: &Stmt<'_>, visit: &mut Visit<'_>) {
    visit(Node::Stmt(stmt));
    match stmt {
        Stmt::Template(t) => all(&t.children, visit),
        Stmt::EmitExpr(e) => expr(&e.expr, visit),
        Stmt::ForLoop(f) => {
            visit(Node::Target(&f.target));
            expr(&f.iter, visit);
            some(f.filter_expr.as_ref(), visit);
            all(&f.body, visit);
            all(&f.else_body, visit);
        }
        Stmt::IfCond(i) => {
            expr(&i.expr, visit);
            all(&i.true_body, visit);
            all(&i.false_body, visit);
        }
        Stmt::WithBlock(w) => {
            for (target, value) in &w.assignments {
                visit(Node::Target(target));
                expr(value, visit);
            }
            all(&w.body, visit);
        }
        Stmt::Set(s) => {
            visit(Node::Target(&s.target));
            expr(&s.expr, visit);
        }
        Stmt::SetBlock(s) => {
            visit(Node::Target(&s.target));
            some(s.filter.as_ref(), visit);
            all(&s.body, visit);
        }
        Stmt::AutoEscape(a) => {
            expr(&a.enabled, visit);
            all(&a.body, visit);
        }
        Stmt::FilterBlock(f) => {
            expr(&f.filter, visit);
            all(&f.body, visit);
        }
        Stmt::Block(b) => all(&b.body, visit),
        Stmt::Macro(m) => macro_body(m, visit),
        Stmt::CallBlock(c) => {
            call(&c.call.expr, &c.call.args, visit);
            macro_body(&c.macro_decl, visit);
        }
        Stmt::Do(d) => call(&d.call.expr, &d.call.args, visit),
        Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
        // They need other templates, of which there are none.
        Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {}
    }
}

fn all(list: &[Stmt<'_>], visit: &mut Visit<'_>) {
    for stmt in list {
        walk(stmt, visit);
    }
}

fn some(one: Option<&Expr<'_>>, visit: &mut Visit<'_>) {
    if let Some(one) = one {
        expr(one, visit);
    }
}

fn macro_body(m: &Macro<'_>, visit: &mut Visit<'_>) {
    for arg in &m.args {
        visit(Node::Target(arg));
    }
    for value in &m.defaults {
        expr(value, visit);
    }
    all(&m.body, visit);
}

/// What is called is not read: a name is a function, an attribute a method.
fn call(callee: &Expr<'_>, args: &[CallArg<'_>], visit: &mut Visit<'_>) {
    match callee {
        Expr::Var(_) => {}
        Expr::GetAttr(attr) => expr(&attr.expr, visit),
        other => expr(other, visit),
    }
    for arg in args {
        expr(argument(arg), visit);
    }
}

fn expr(e: &Expr<'_>, visit: &mut Visit<'_>) {
    visit(Node::Expr(e));
    match e {
        Expr::Var(_) | Expr::Const(_) => {}
        Expr::Slice(s) => {
            expr(&s.expr, visit);
            for one in [&s.start, &s.stop, &s.step] {
                some(one.as_ref(), visit);
            }
        }
        Expr::UnaryOp(u) => expr(&u.expr, visit),
        Expr::BinOp(b) => {
            expr(&b.left, visit);
            expr(&b.right, visit);
        }
        Expr::Compare(c) => {
            expr(&c.expr, visit);
            for op in &c.ops {
                expr(&op.expr, visit);
            }
        }
        Expr::IfExpr(i) => {
            expr(&i.true_expr, visit);
            expr(&i.test_expr, visit);
            some(i.false_expr.as_ref(), visit);
        }
        Expr::Filter(f) => {
            some(f.expr.as_ref(), visit);
            for arg in &f.args {
                expr(argument(arg), visit);
            }
        }
        Expr::Test(t) => {
            expr(&t.expr, visit);
            for arg in &t.args {
                expr(argument(arg), visit);
            }
        }
        Expr::GetAttr(g) => expr(&g.expr, visit),
        Expr::GetItem(g) => {
            expr(&g.expr, visit);
            expr(&g.subscript_expr, visit);
        }
        Expr::Call(c) => call(&c.expr, &c.args, visit),
        Expr::List(l) => l.items.iter().for_each(|item| expr(item, visit)),
        Expr::Tuple(t) => t.items.iter().for_each(|item| expr(item, visit)),
        Expr::Map(m) => m.keys.iter().chain(&m.values).for_each(|item| expr(item, visit)),
    }
}
