//! The toy under stateright: the same word, the same steps.

use stateright::{Checker, Model, Property};

use super::toy::{BLOCKS, Toy, Word};

#[derive(Clone)]
struct Peer(Toy);

impl Model for Peer {
    type State = Word;
    type Action = u8;

    fn init_states(&self) -> Vec<Word> {
        vec![explorer::Model::initial(&self.0)]
    }

    fn actions(&self, state: &Word, actions: &mut Vec<u8>) {
        actions.extend((0..BLOCKS + 2).filter(|&thread| self.0.can_step(*state, thread)));
    }

    fn next_state(&self, state: &Word, thread: u8) -> Option<Word> {
        let mut state = *state;
        self.0.step(&mut state, thread);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Peer>> {
        vec![Property::always("holds", |_, state| Toy::holds(*state))]
    }
}

/// Visits the whole graph on one thread; the number of distinct states.
pub(crate) fn breadth_first(toy: Toy) -> u64 {
    let checker = Peer(toy).checker().threads(1).spawn_bfs().join();
    checker.assert_properties();
    checker.unique_state_count() as u64
}
