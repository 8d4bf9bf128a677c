//! What a file defines: types, bound closures, and functions with their lengths.

use syn::{
    Expr,
    spanned::Spanned,
    visit::{self, Visit},
};

/// Statements and functions of some files.
#[derive(Default)]
pub(super) struct StatementCounts {
    pub(super) lets: usize,
    /// Closures bound to a name with `let`.
    pub(super) closures: usize,
    /// From each function's signature to its closing brace.
    pub(super) function_lines: Vec<usize>,
}

impl StatementCounts {
    pub(super) fn add(&mut self, file: &syn::File) {
        self.visit_file(file);
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.span().start().line;
        let last = block.span().end().line;
        self.function_lines.push(last - first + 1);
    }
}

impl<'a> Visit<'a> for StatementCounts {
    fn visit_local(&mut self, local: &'a syn::Local) {
        self.lets += 1;
        let value = local.init.as_ref().map(|init| init.expr.as_ref());
        self.closures += usize::from(value.is_some_and(is_closure));
        visit::visit_local(self, local);
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

fn is_closure(value: &Expr) -> bool {
    match value {
        Expr::Closure(_) => true,
        Expr::Paren(inner) => is_closure(&inner.expr),
        Expr::Reference(inner) => is_closure(&inner.expr),
        _ => false,
    }
}

/// The names of the types, traits and aliases that a file defines. Associated types do not count.
pub(crate) fn type_names(file: &syn::File) -> Vec<String> {
    let mut names = TypeNames(Vec::new());
    names.visit_file(file);
    names.0
}

struct TypeNames(Vec<String>);

impl<'a> Visit<'a> for TypeNames {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let name = match item {
            syn::Item::Struct(item) => Some(&item.ident),
            syn::Item::Enum(item) => Some(&item.ident),
            syn::Item::Union(item) => Some(&item.ident),
            syn::Item::Trait(item) => Some(&item.ident),
            syn::Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        if let Some(name) = name {
            self.0.push(name.to_string());
        }
        visit::visit_item(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> syn::File {
        syn::parse_file(text).expect("the text is Rust")
    }

    #[test]
    fn closures_are_counted_where_a_let_binds_them() {
        let mut counts = StatementCounts::default();
        counts.add(&file(
            "fn a() { let f = |x| x; let g = &mut move || 1; let h = (1..2).map(|x| x); if let Some(_) = h {} }",
        ));
        assert_eq!((counts.closures, counts.lets), (2, 3));
    }

    #[test]
    fn a_function_has_the_lines_from_its_signature_to_its_end() {
        let mut counts = StatementCounts::default();
        counts.add(&file(
            "/// Doc.\nfn a(\n    x: u8,\n) {\n}\n\ntrait T {\n    fn b();\n    fn c() {}\n}\n",
        ));
        assert_eq!(counts.function_lines, [4, 1]);
    }

    #[test]
    fn associated_types_do_not_count() {
        let names = type_names(&file(
            "struct A;\nmod m {\n    enum B {}\n}\nimpl T for A { type C = u8; }\ntrait T { type C; }\ntype D = u8;\n",
        ));
        assert_eq!(names, ["A", "B", "T", "D"]);
    }
}
