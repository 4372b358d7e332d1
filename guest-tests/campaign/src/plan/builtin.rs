//! The plans that come with the program.

const PLANS: [(&str, &str); 19] = [
    ("mkwrite-fallocate", include_str!("../../../plans/mkwrite-fallocate.toml")),
    ("mkwrite-fallocate-journal", include_str!("../../../plans/mkwrite-fallocate-journal.toml")),
    ("mkwrite-fallocate-gated", include_str!("../../../plans/mkwrite-fallocate-gated.toml")),
    (
        "mkwrite-fallocate-unordered",
        include_str!("../../../plans/mkwrite-fallocate-unordered.toml"),
    ),
    ("short-copy", include_str!("../../../plans/short-copy.toml")),
    ("remount-nodelalloc", include_str!("../../../plans/remount-nodelalloc.toml")),
    ("inline-truncate", include_str!("../../../plans/inline-truncate.toml")),
    ("failed-write-converts", include_str!("../../../plans/failed-write-converts.toml")),
    ("journaled-truncate", include_str!("../../../plans/journaled-truncate.toml")),
    ("journaled-collapse", include_str!("../../../plans/journaled-collapse.toml")),
    ("indirect-seek", include_str!("../../../plans/indirect-seek.toml")),
    ("extend-exposes", include_str!("../../../plans/extend-exposes.toml")),
    ("zero-range-mapped", include_str!("../../../plans/zero-range-mapped.toml")),
    ("read-punch", include_str!("../../../plans/read-punch.toml")),
    ("remount-writepages", include_str!("../../../plans/remount-writepages.toml")),
    ("sync-append", include_str!("../../../plans/sync-append.toml")),
    ("late-leaf", include_str!("../../../plans/late-leaf.toml")),
    ("direct-fallback", include_str!("../../../plans/direct-fallback.toml")),
    ("zero-range-size", include_str!("../../../plans/zero-range-size.toml")),
];

/// Names of the built-in plans.
pub fn names() -> impl Iterator<Item = &'static str> {
    PLANS.iter().map(|(name, _)| *name)
}

/// The file of a built-in plan.
pub fn text(name: &str) -> Option<&'static str> {
    PLANS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
