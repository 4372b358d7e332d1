//! What a Rust source says of its own types: members, whether they may be left out, what they mean.
//!
//! In: a source file. Out: [`Member`]s of a structure, [`Variant`]s of an enumeration.
//! Must not know: which types there are.

use std::fs;

use anyhow::{Context, Result};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ExprLit, Fields, File, Item, Lit, Meta, Token};

use crate::command::top;

/// A source file.
pub(super) struct Source {
    path: &'static str,
    file: File,
}

/// A member of a structure or a variant.
pub(super) struct Member {
    /// As it is written in a file.
    pub(super) name: String,
    /// Its type in Rust, without spaces.
    pub(super) kind: String,
    /// Whether it may be left out.
    pub(super) optional: bool,
    /// Its documentation, on one line.
    pub(super) doc: String,
}

/// A variant of an enumeration.
pub(super) struct Variant {
    /// As it is written in a file.
    pub(super) name: String,
    /// Its documentation, on one line.
    pub(super) doc: String,
    /// Its members.
    pub(super) members: Vec<Member>,
}

impl Source {
    pub(super) fn read(path: &'static str) -> Result<Source> {
        let text = fs::read_to_string(top().join(path)).with_context(|| path.to_owned())?;
        Ok(Source { path, file: syn::parse_file(&text).with_context(|| path.to_owned())? })
    }

    /// The documentation of the file itself, from a heading on.
    pub(super) fn module_doc(&self, heading: &str) -> Result<String> {
        let lines = doc_lines(&self.file.attrs);
        let at = lines.iter().position(|line| line == heading);
        let at = at.with_context(|| format!("{} has no heading {heading:?}", self.path))?;
        Ok(lines[at + 1..].join("\n"))
    }

    /// Members of a structure.
    pub(super) fn members(&self, name: &str) -> Result<Vec<Member>> {
        let found = self.file.items.iter().find_map(|item| match item {
            Item::Struct(of) if of.ident == name => Some(members(&of.fields)),
            _ => None,
        });
        found.with_context(|| format!("{} has no struct {name}", self.path))
    }

    /// Variants of an enumeration.
    pub(super) fn variants(&self, name: &str) -> Result<Vec<Variant>> {
        let found = self.file.items.iter().find_map(|item| match item {
            Item::Enum(of) if of.ident == name => Some(of),
            _ => None,
        });
        let of = found.with_context(|| format!("{} has no enum {name}", self.path))?;
        let variant = |of: &syn::Variant| Variant {
            name: snake(&of.ident.to_string()),
            doc: doc(&of.attrs),
            members: members(&of.fields),
        };
        Ok(of.variants.iter().map(variant).collect())
    }
}

fn members(fields: &Fields) -> Vec<Member> {
    let member = |field: &syn::Field| {
        let kind = &field.ty;
        let kind: String = quote::quote!(#kind).to_string().split_whitespace().collect();
        let ident = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
        Member {
            name: serde(&field.attrs, "rename").and_then(|of| renamed(&of)).unwrap_or(ident),
            optional: kind.starts_with("Option<") || serde(&field.attrs, "default").is_some(),
            kind,
            doc: doc(&field.attrs),
        }
    };
    fields.iter().map(member).collect()
}

/// A word of `#[serde(...)]`, with what it is given.
fn serde(attributes: &[Attribute], word: &str) -> Option<Meta> {
    let words = attributes.iter().filter(|attribute| attribute.path().is_ident("serde"));
    let words = words.filter_map(|attribute| {
        attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()
    });
    words.flatten().find(|meta| meta.path().is_ident(word))
}

fn renamed(meta: &Meta) -> Option<String> {
    match meta {
        Meta::NameValue(of) => text(&of.value),
        _ => None,
    }
}

fn text(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}

fn doc(attributes: &[Attribute]) -> String {
    doc_lines(attributes).join(" ").trim().to_owned()
}

fn doc_lines(attributes: &[Attribute]) -> Vec<String> {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(of) if of.path.is_ident("doc") => text(&of.value),
        _ => None,
    });
    lines.map(|line| line.strip_prefix(' ').unwrap_or(&line).to_owned()).collect()
}

/// `AwaitParked` as serde's `snake_case` has it.
pub(super) fn snake(name: &str) -> String {
    name.chars().enumerate().fold(String::new(), |mut text, (at, c)| {
        if c.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_attributes_and_words_are_read() {
        let text = "
            //! # Heading
            //! Text.
            /// A structure.
            struct S {
                /// One,
                /// two.
                #[serde(default, rename = \"thread\")]
                threads: Vec<Thread>,
                must: u32,
                may: Option<String>,
            }
            enum E { AwaitParked { #[serde(default)] x: bool } }";
        let source = Source { path: "x.rs", file: syn::parse_file(text).unwrap() };
        let members = source.members("S").unwrap();
        let seen: Vec<_> =
            members.iter().map(|m| (&*m.name, &*m.kind, m.optional, &*m.doc)).collect();
        assert_eq!(
            seen,
            [
                ("thread", "Vec<Thread>", true, "One, two."),
                ("must", "u32", false, ""),
                ("may", "Option<String>", true, ""),
            ]
        );
        let variants = source.variants("E").unwrap();
        assert_eq!(variants[0].name, "await_parked");
        assert!(variants[0].members[0].optional);
        assert_eq!(source.module_doc("# Heading").unwrap(), "Text.");
        assert!(source.module_doc("# Other").is_err() && source.members("T").is_err());
    }
}
