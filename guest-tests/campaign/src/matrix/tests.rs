use super::*;

#[test]
fn a_series_is_spread_from_its_oldest_to_its_newest() {
    let five: Vec<&str> = vec!["a", "b", "c", "d", "e"];
    assert_eq!(spread(std::slice::from_ref(&five), 2), ["a", "e"]);
    assert_eq!(spread(std::slice::from_ref(&five), 3), ["a", "c", "e"]);
    assert_eq!(spread(std::slice::from_ref(&five), 1), ["e"]);
    assert_eq!(spread(std::slice::from_ref(&five), 9), five);
    assert_eq!(spread(&[vec!["x"], five], 2), ["x", "a", "e"]);
    assert!(spread(&[Vec::new()], 2).is_empty());
}

#[test]
fn a_kernel_that_is_gone_has_a_row_only_if_it_was_named() {
    let missing = [("named", "404"), ("of-a-series", "404 too")];
    let settings = Settings {
        error: 0.05,
        most_trials: 10,
        most_invalid: 5,
        missing: missing.map(|(kernel, why)| (kernel.to_owned(), why.to_owned())).to_vec(),
    };
    let plans = [("short-copy".to_owned(), "a summary".to_owned())];
    let table = table(&plans, 7, &["named".to_owned()], &settings, &[]);
    let [cell] = &table.cells[..] else { panic!("{:?}", table.cells) };
    assert_eq!((cell.verdict, cell.reason.as_deref()), (Verdict::Inconclusive, Some("404")));
    assert_eq!(table.passed_over, [("of-a-series".to_owned(), "404 too".to_owned())]);
}
