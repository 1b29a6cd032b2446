//! From text to syntax tree, with limits: text that is too long, or nested too deeply, is refused
//! before it can exhaust the stack. Messages have the form of cel-go's: place, line, caret.

use std::collections::HashSet;

use cel::common::ast::{EntryExpr, Expr, IdedExpr, SourceInfo};

use crate::{CelError, library, nesting};

/// Code points of an expression, at most (cel-go's default).
const LONGEST: usize = 100_000;
/// Nested brackets, at most: cel-go's limit of recursion.
const DEEPEST: usize = 250;
/// Nodes from the root of a tree to its deepest leaf, at most.
const DEEPEST_TREE: usize = 500;
/// Operators and brackets up to which the caller's own stack is surely enough.
const SHALLOW: usize = 12;
/// Enough for a tree of [`DEEPEST_TREE`] levels, in builds without optimisation too.
const STACK: usize = 256 << 20;

/// A syntax tree, and where its nodes were written.
pub struct Parsed {
    pub root: IdedExpr,
    pub source: SourceInfo,
    /// Levels of the tree.
    pub depth: usize,
}

/// Runs `work` with a stack of its own if a tree is so deep.
pub fn with_stack<T>(depth: usize, work: impl FnOnce() -> T) -> T {
    if depth <= SHALLOW { work() } else { stacker::grow(STACK, work) }
}

pub fn parse(text: &str) -> Result<Parsed, CelError> {
    let size = text.chars().count();
    if size > LONGEST {
        return Err(problem(
            text,
            0,
            &format!("expression code point size exceeds limit: size: {size}, limit {LONGEST}"),
        ));
    }
    let (nesting, operators) = nesting::of(text);
    if nesting > DEEPEST || operators > LONGEST / 10 {
        return Err(problem(text, 0, &format!("expression recursion limit exceeded: {DEEPEST}")));
    }
    let deepest = u16::try_from(DEEPEST).unwrap_or(u16::MAX);
    let parser = library::environment().parser().max_recursion_depth(deepest);
    with_stack(nesting + operators, || {
        let (root, source) = parser.parse_with_source_info(text).map_err(|errors| {
            let place = |at: isize| usize::try_from(at).unwrap_or(1).max(1);
            let texts: Vec<String> = errors
                .errors
                .iter()
                .map(|error| at(text, place(error.pos.0), place(error.pos.1), &error.msg))
                .collect();
            CelError::Compile(texts.join("\n"))
        })?;
        let depth = depth(&root);
        if depth > DEEPEST_TREE {
            return Err(problem(text, 0, &format!("expression recursion limit exceeded: {DEEPEST}")));
        }
        Ok(Parsed { root, source, depth })
    })
}

/// Every node below and including `expr`, its children first or last as `visit` wants.
pub fn children(expr: &Expr) -> Vec<&IdedExpr> {
    match expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Select(select) => vec![&*select.operand],
        Expr::Map(map) => map.entries.iter().flat_map(entry).collect(),
        Expr::Struct(record) => record.entries.iter().flat_map(entry).collect(),
        Expr::Comprehension(all) => {
            vec![&all.iter_range, &all.accu_init, &all.loop_cond, &all.loop_step, &all.result]
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

fn entry(entry: &cel::common::ast::IdedEntryExpr) -> Vec<&IdedExpr> {
    match &entry.expr {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

fn depth(root: &IdedExpr) -> usize {
    1 + children(&root.expr).into_iter().map(depth).max().unwrap_or(0)
}

/// Nodes of a tree.
pub fn size(root: &IdedExpr) -> u64 {
    1 + children(&root.expr).into_iter().map(size).sum::<u64>()
}

/// Names that an expression mentions, and the members of `variables` among them.
pub fn names(root: &IdedExpr, idents: &mut HashSet<String>, variables: &mut Vec<String>) {
    match &root.expr {
        Expr::Ident(name) => drop(idents.insert(name.clone())),
        Expr::Select(select)
            if matches!(&select.operand.expr, Expr::Ident(name) if name == "variables")
                && !variables.contains(&select.field) =>
        {
            variables.push(select.field.clone());
        }
        _ => {}
    }
    children(&root.expr).into_iter().for_each(|child| names(child, idents, variables));
}

/// A message about the place `offset` characters into the text.
pub fn problem(text: &str, offset: usize, message: &str) -> CelError {
    CelError::Compile(place(text, offset, message))
}

pub fn place(text: &str, offset: usize, message: &str) -> String {
    let (mut line, mut column) = (1, 1);
    for c in text.chars().take(offset) {
        if c == '\n' {
            (line, column) = (line + 1, 1);
        } else {
            column += 1;
        }
    }
    at(text, line, column, message)
}

fn at(text: &str, line: usize, column: usize, message: &str) -> String {
    let shown: String = text.lines().nth(line - 1).unwrap_or_default().chars().take(1000).collect();
    format!("ERROR: <input>:{line}:{column}: {message}\n | {shown}\n | {:.>1$}", "^", column.min(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_and_long_expressions_are_refused_not_crashed_on() {
        let deep = |open: &str, close: &str, times: usize| format!("{}1{}", open.repeat(times), close.repeat(times));
        for text in [
            deep("(", ")", 300),
            deep("[", "]", 100_000),
            deep("{1:", "}", 300),
            "a".repeat(LONGEST + 1),
            "!".repeat(50_000) + "true",
            "-".repeat(20_000) + "1",
            format!("a{}", ".a".repeat(20_000)),
            format!("1{}", "+1".repeat(20_000)),
            format!("1{}", " in 1".repeat(15_000)),
            format!("1{}", " in [1]".repeat(600)),
            // What comes behind an odd quote is no text.
            format!("r'\\' == ''{}", "+1".repeat(20_000)),
            format!("'''it's''' == ''{}", "+1".repeat(20_000)),
            format!("1 // it's\n{}", "+1".repeat(20_000)),
            format!("'\n1{}", "+1".repeat(20_000)),
        ] {
            assert!(parse(&text).is_err(), "{}", &text[..40]);
        }
        for text in [
            deep("(", ")", 200),
            deep("[", "]", 200),
            format!("a{}", ".a".repeat(300)),
            format!("1{}", "+1".repeat(300)),
            format!("true{}", " && true".repeat(2000)),
            format!("'{}'.size() > 0", "(".repeat(5000)),
            format!("r'\\' == '''it's{}'''", "+".repeat(20_000)),
        ] {
            assert!(parse(&text).is_ok(), "{}", &text[..40]);
        }
    }

    #[test]
    fn messages_show_the_place() {
        let Err(CelError::Compile(text)) = parse("self.a +\n b c") else { panic!("it is wrong") };
        assert!(text.starts_with("ERROR: <input>:2:4: Syntax error") && text.ends_with("\n |  b c\n | ...^"), "{text}");
    }
}
