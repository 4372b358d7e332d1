//! The known name that somebody meant to type.
//!
//! In: a name and the known ones. Out: the nearest, if near enough. Must not know: what they name.

/// The known name with the smallest Damerau-Levenshtein distance, if that is at most a third of
/// its length (beyond, a suggestion misleads more than it helps); else one that begins with what
/// was typed.
pub(crate) fn nearest<'a, I>(name: &str, known: I) -> Option<&'a str>
where
    I: IntoIterator<Item = &'a str> + Clone,
{
    let close = known
        .clone()
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.chars().count() / 3)
        .min()
        .map(|(_, candidate)| candidate);
    let begun = |candidate: &&str| name.len() >= 3 && candidate.starts_with(name);
    close.or_else(|| known.into_iter().find(begun))
}

/// The end of a message about an unknown name.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
