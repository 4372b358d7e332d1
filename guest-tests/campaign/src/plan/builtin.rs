//! The plans that come with the program.

const PLANS: [(&str, &str); 3] = [
    ("mkwrite-fallocate", include_str!("../../../plans/mkwrite-fallocate.toml")),
    ("mkwrite-fallocate-journal", include_str!("../../../plans/mkwrite-fallocate-journal.toml")),
    ("mkwrite-fallocate-gated", include_str!("../../../plans/mkwrite-fallocate-gated.toml")),
];

/// Names of the built-in plans.
pub fn names() -> impl Iterator<Item = &'static str> {
    PLANS.iter().map(|(name, _)| *name)
}

/// The file of a built-in plan.
pub fn text(name: &str) -> Option<&'static str> {
    PLANS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
