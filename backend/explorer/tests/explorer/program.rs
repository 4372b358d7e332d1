//! A model for tests: threads that run little programs over four variables and two locks.

use explorer::{Footprint, InvariantId, Model, Step, StepBuf, identity};
use proptest::prelude::*;

pub(crate) const VARS: usize = 4;
pub(crate) const LOCKS: usize = 5;

/// One atomic instruction. `acc` is the thread's own register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Nop,
    /// acc := value
    Const(u8),
    /// acc := 0 or 1, as the outside decides
    Choose,
    /// acc := var
    Load(u8),
    /// var := acc
    Store(u8),
    /// var := value
    Set(u8, u8),
    /// acc := acc + 1 modulo 4
    Inc,
    Lock(u8),
    Unlock(u8),
    /// blocks until the variable has the value
    Await(u8, u8),
    /// goes to the instruction if acc has the value
    JumpIf(u8, u8),
    /// breaks invariant 0 if the variable has the value
    AssertNot(u8, u8),
}

/// Never both: variable a = x and variable b = y. Invariant 1 + index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Never(pub(crate) (u8, u8), pub(crate) (u8, u8));

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Program {
    pub(crate) threads: Vec<Vec<Op>>,
    pub(crate) never: Vec<Never>,
    /// At the end the variable must have the value. Invariant 100.
    pub(crate) ends_with: Option<(u8, u8)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    vars: [u8; VARS],
    /// Owner + 1, 0 if free.
    locks: [u8; LOCKS],
    pc: Vec<u8>,
    acc: Vec<u8>,
}

pub(crate) const ASSERTED: InvariantId = InvariantId(0);
pub(crate) const ENDS_WITH: InvariantId = InvariantId(100);

impl Program {
    pub(crate) fn new(threads: Vec<Vec<Op>>) -> Program {
        Program { threads, ..Program::default() }
    }

    fn op(&self, state: &State, thread: u8) -> Option<Op> {
        let thread = usize::from(thread);
        self.threads[thread].get(usize::from(state.pc[thread])).copied()
    }

    fn touched(&self, op: Op) -> Footprint {
        let var = |var: u8| 1_u128 << var;
        let lock = |lock: u8| 1_u128 << (8 + lock);
        // A write to a variable may change the verdict of each invariant that names it.
        let write = |v: u8| {
            let verdicts = (16..).zip(&self.never);
            let verdicts = verdicts.filter(|(_, never)| never.0.0 == v || never.1.0 == v);
            verdicts.fold(var(v), |mask, (bit, _)| mask | 1 << bit)
        };
        let (reads, writes) = match op {
            Op::Nop | Op::Const(_) | Op::Choose | Op::Inc | Op::JumpIf(..) => (0, 0),
            Op::Load(v) | Op::Await(v, _) => (var(v), 0),
            Op::Store(v) | Op::Set(v, _) => (0, write(v)),
            Op::Lock(l) | Op::Unlock(l) => (0, lock(l)),
            Op::AssertNot(v, _) => (var(v), 1 << 15),
        };
        Footprint { reads, writes }
    }

    /// Instructions that may still come, the one at `pc` included.
    fn reachable(&self, thread: usize, pc: u8) -> impl Iterator<Item = Op> {
        let code = &self.threads[thread];
        let mut seen = vec![false; code.len()];
        let mut open = vec![usize::from(pc)];
        while let Some(at) = open.pop() {
            if at < code.len() && !seen[at] {
                seen[at] = true;
                open.push(at + 1);
                if let Op::JumpIf(_, to) = code[at] {
                    open.push(usize::from(to));
                }
            }
        }
        code.iter().zip(seen).filter_map(|(&op, seen)| seen.then_some(op))
    }
}

impl Model for Program {
    type State = State;

    fn name(&self) -> String {
        "program".to_owned()
    }

    fn identity(&self) -> u64 {
        identity(&format!("{self:?}"))
    }

    fn threads(&self) -> usize {
        self.threads.len()
    }

    fn initial(&self) -> State {
        let count = self.threads.len();
        State { vars: [0; VARS], locks: [0; LOCKS], pc: vec![0; count], acc: vec![0; count] }
    }

    fn enabled(&self, state: &State, out: &mut StepBuf) {
        for thread in 0..self.threads.len() as u8 {
            match self.op(state, thread) {
                None => {}
                Some(Op::Lock(lock)) if state.locks[usize::from(lock)] != 0 => {}
                Some(Op::Await(var, value)) if state.vars[usize::from(var)] != value => {}
                Some(Op::Choose) => {
                    out.push(thread, 0);
                    out.push(thread, 1);
                }
                Some(_) => out.push(thread, 0),
            }
        }
    }

    fn apply(&self, state: &mut State, step: Step) {
        let thread = usize::from(step.thread);
        let Some(op) = self.op(state, step.thread) else { panic!("step of a finished thread") };
        state.pc[thread] += 1;
        match op {
            Op::Nop | Op::Await(..) | Op::AssertNot(..) => {}
            Op::Const(value) => state.acc[thread] = value,
            Op::Choose => state.acc[thread] = step.choice,
            Op::Load(var) => state.acc[thread] = state.vars[usize::from(var)],
            Op::Store(var) => state.vars[usize::from(var)] = state.acc[thread],
            Op::Set(var, value) => state.vars[usize::from(var)] = value,
            Op::Inc => state.acc[thread] = (state.acc[thread] + 1) % 4,
            Op::Lock(lock) => state.locks[usize::from(lock)] = step.thread + 1,
            Op::Unlock(lock) => {
                let owner = &mut state.locks[usize::from(lock)];
                if *owner == step.thread + 1 {
                    *owner = 0;
                }
            }
            Op::JumpIf(value, to) => {
                if state.acc[thread] == value {
                    state.pc[thread] = to;
                }
            }
        }
    }

    fn check(&self, state: &State, last: Step) -> Result<(), InvariantId> {
        let thread = usize::from(last.thread);
        // A jump may lead anywhere, but an assertion is always left to the next instruction.
        let taken = usize::from(state.pc[thread]).checked_sub(1).map(|at| self.threads[thread][at]);
        if let Some(Op::AssertNot(var, value)) = taken {
            // A jump to just behind an assertion evaluates it as well; its footprint is then
            // that of a jump, so generated programs do not do that.
            if state.vars[usize::from(var)] == value {
                return Err(ASSERTED);
            }
        }
        let is = |(var, value): (u8, u8)| state.vars[usize::from(var)] == value;
        for (id, never) in (1..).zip(&self.never) {
            if is(never.0) && is(never.1) {
                return Err(InvariantId(id));
            }
        }
        Ok(())
    }

    fn finished(&self, state: &State) -> bool {
        (0..self.threads.len() as u8).all(|thread| self.op(state, thread).is_none())
    }

    fn check_final(&self, state: &State) -> Result<(), InvariantId> {
        match self.ends_with {
            Some((var, value)) if state.vars[usize::from(var)] != value => Err(ENDS_WITH),
            _ => Ok(()),
        }
    }

    fn footprint(&self, state: &State, step: Step) -> Footprint {
        self.op(state, step.thread).map_or(Footprint::NOTHING, |op| self.touched(op))
    }

    fn future(&self, state: &State, thread: u8) -> Footprint {
        let thread = usize::from(thread);
        self.reachable(thread, state.pc[thread])
            .fold(Footprint::NOTHING, |sum, op| sum.with(self.touched(op)))
    }

    fn invariant(&self, id: InvariantId) -> String {
        format!("I{}", id.0)
    }

    fn explain(&self, history: &[Step], state: &State, id: InvariantId) -> String {
        format!("I{} after {} steps: {:?}", id.0, history.len(), state.vars)
    }

    fn thread_name(&self, thread: u8) -> String {
        format!("T{thread}")
    }

    fn step_label(&self, before: &State, step: Step) -> String {
        format!("{:?}", self.op(before, step.thread))
    }
}

fn op(length: u8, jumps: std::ops::Range<u8>) -> impl Strategy<Value = Op> {
    let var = 0..3_u8;
    let value = 0..3_u8;
    prop_oneof![
        Just(Op::Nop),
        value.clone().prop_map(Op::Const),
        Just(Op::Choose),
        var.clone().prop_map(Op::Load),
        var.clone().prop_map(Op::Store),
        (var.clone(), value.clone()).prop_map(|(v, x)| Op::Set(v, x)),
        Just(Op::Inc),
        (0..2_u8).prop_map(Op::Lock),
        (0..2_u8).prop_map(Op::Unlock),
        (var.clone(), value.clone()).prop_map(|(v, x)| Op::Await(v, x)),
        (value.clone(), jumps).prop_map(move |(x, to)| Op::JumpIf(x, to.min(length))),
        (var, value).prop_map(|(v, x)| Op::AssertNot(v, x)),
    ]
}

/// Programs of two to three threads of up to `length` instructions. Jumps go forward, or anywhere
/// in `cyclic` ones.
pub(crate) fn programs(length: u8, cyclic: bool) -> impl Strategy<Value = Program> {
    let body = move |at: u8| {
        let jumps = if cyclic { 0..length + 1 } else { at + 1..length + 1 };
        op(length, jumps)
    };
    let code = (0..length).map(body).collect::<Vec<_>>();
    let thread = (code, 0..=usize::from(length)).prop_map(|(mut code, length)| {
        code.truncate(length);
        without_jumps_behind_assertions(code)
    });
    let never = ((0..3_u8, 1..3_u8), (0..3_u8, 1..3_u8)).prop_map(|(a, b)| Never(a, b));
    (
        prop::collection::vec(thread, 2..=3),
        prop::collection::vec(never, 0..2),
        prop::option::weighted(0.2, (0..3_u8, 0..3_u8)),
    )
        .prop_map(|(threads, never, ends_with)| Program { threads, never, ends_with })
}

/// `check` sees the instruction before the program counter: see there.
fn without_jumps_behind_assertions(mut code: Vec<Op>) -> Vec<Op> {
    for at in 0..code.len() {
        if let Op::JumpIf(_, to) = code[at] {
            let lands_behind = usize::from(to).checked_sub(1).and_then(|before| code.get(before));
            if usize::from(to) > code.len() || matches!(lands_behind, Some(Op::AssertNot(..))) {
                code[at] = Op::Nop;
            }
        }
    }
    code
}
