//! Any interleaving of calls, writes, reads, faults and time, against queues of bytes.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::{Pace, StreamError, StreamId};
use super::world::{LISTENING, MS, SMALL_AND_SOUND, World};
use crate::addr::Port;

#[derive(Clone, Copy, Debug)]
enum Step {
    Call {
        end: usize,
    },
    Write {
        end: usize,
        stream: usize,
        len: usize,
    },
    Read {
        end: usize,
        stream: usize,
        len: usize,
    },
    Finish {
        end: usize,
        stream: usize,
    },
    Transmit {
        end: usize,
        bytes: usize,
    },
    Carry {
        end: usize,
        bytes: usize,
    },
    Refuse {
        end: usize,
        jitter: u64,
    },
    Lose {
        end: usize,
        bytes: usize,
    },
    Cut,
    Connect,
    Pass {
        nanos: u64,
    },
    Restart {
        end: usize,
    },
    Close {
        end: usize,
        stream: usize,
    },
    /// A call that is given up when so much of it has gone and so much of the answer has come.
    GiveUp {
        end: usize,
        went: usize,
        came: usize,
    },
}

/// One direction of one stream: what was written and has not been read.
#[derive(Debug)]
struct Flow {
    writer: (usize, StreamId),
    reader: (usize, StreamId),
    under_way: VecDeque<u8>,
    finished: bool,
    writer_is_gone: bool,
    /// The writer has closed the stream: it ends, or is reset if the writer left something unread.
    is_closed: bool,
    /// An error was told to the reader: what it has not read it knows to be lost.
    reset: bool,
}

impl Flow {
    fn new(writer: (usize, StreamId), reader: (usize, StreamId)) -> Self {
        Self {
            writer,
            reader,
            under_way: VecDeque::new(),
            finished: false,
            writer_is_gone: false,
            is_closed: false,
            reset: false,
        }
    }
}

struct Run {
    world: World,
    flows: Vec<Flow>,
    next_byte: u8,
    may_reset: bool,
}

fn step(with_restarts: bool) -> impl Strategy<Value = Step> {
    let end = 0..2usize;
    let stream = 0..6usize;
    prop_oneof![
        2 => end.clone().prop_map(|end| Step::Call { end }),
        8 => (end.clone(), stream.clone(), 0..40_000usize)
            .prop_map(|(end, stream, len)| Step::Write { end, stream, len }),
        8 => (end.clone(), stream.clone(), 1..40_000usize)
            .prop_map(|(end, stream, len)| Step::Read { end, stream, len }),
        1 => (end.clone(), stream).prop_map(|(end, stream)| Step::Finish { end, stream }),
        10 => (end.clone(), 1..20_000usize).prop_map(|(end, bytes)| Step::Transmit { end, bytes }),
        10 => (end.clone(), 1..20_000usize).prop_map(|(end, bytes)| Step::Carry { end, bytes }),
        2 => (end.clone(), any::<u64>()).prop_map(|(end, jitter)| Step::Refuse { end, jitter }),
        1 => (end.clone(), 1..5000usize).prop_map(|(end, bytes)| Step::Lose { end, bytes }),
        1 => Just(Step::Cut),
        3 => Just(Step::Connect),
        1 => (end.clone(), 0..6usize).prop_map(|(end, stream)| Step::Close { end, stream }),
        1 => (end.clone(), 0..100usize, 0..100usize)
            .prop_map(|(end, went, came)| Step::GiveUp { end, went, came }),
        4 => (0..50 * MS).prop_map(|nanos| Step::Pass { nanos }),
        1 => end.prop_map(move |end| if with_restarts { Step::Restart { end } } else { Step::Cut }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_arrives_whole_once_in_order(steps in prop::collection::vec(step(false), 1..400)) {
        let mut run = Run::new(false);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }

    #[test]
    fn whatever_is_written_arrives_whole_once_in_order_over_a_sound_socket(
        steps in prop::collection::vec(step(false), 1..400)
    ) {
        let mut run = Run::on(World::sound(), false);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }

    #[test]
    fn whatever_is_written_arrives_whole_once_in_order_between_ends_of_two_kinds(
        steps in prop::collection::vec(step(false), 1..400),
        is_dialler in any::<bool>(),
    ) {
        let mut paces = [Pace::DEFAULT; 2];
        paces[usize::from(is_dialler)] = SMALL_AND_SOUND;
        let mut run = Run::on(World::with(paces), false);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }

    #[test]
    fn whatever_a_restart_swallows_is_told_over_a_sound_socket(steps in prop::collection::vec(step(true), 1..400)) {
        let mut run = Run::on(World::sound(), true);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }

    #[test]
    fn whatever_is_written_arrives_whole_once_in_order_over_a_line(
        steps in prop::collection::vec(step(false), 1..400)
    ) {
        let mut run = Run::on(World::line(), false);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }

    #[test]
    fn whatever_a_restart_swallows_is_told_over_a_line(steps in prop::collection::vec(step(true), 1..400)) {
        let mut run = Run::on(World::line(), true);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }

    #[test]
    fn whatever_a_restart_swallows_is_told(steps in prop::collection::vec(step(true), 1..400)) {
        let mut run = Run::new(true);
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }
}

impl Run {
    fn new(may_reset: bool) -> Self {
        Self::on(World::new(), may_reset)
    }

    fn on(world: World, may_reset: bool) -> Self {
        Self { world, flows: Vec::new(), next_byte: 0, may_reset }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Call { end } => self.call(end),
            Step::Write { end, stream, len } => self.write(end, stream, len),
            Step::Read { end, stream, len } => self.read(end, stream, len),
            Step::Finish { end, stream } => {
                if let Some(at) = self.nth(stream, |flow| flow.writer.0 == end && !flow.writer_is_gone) {
                    let flow = &mut self.flows[at];
                    if self.world.ends[end].finish(flow.writer.1).is_ok() {
                        flow.finished = true;
                    }
                }
            }
            Step::Close { end, stream } => self.close(end, stream),
            Step::GiveUp { end, went, came } => {
                let Ok(call) = self.world.ends[end].open(Port(1), LISTENING) else { return };
                self.world.transmit(end, went);
                self.world.carry(end, usize::MAX);
                self.world.transmit(1 - end, came);
                self.world.carry(1 - end, usize::MAX);
                self.world.ends[end].close(call);
            }
            Step::Transmit { end, bytes } => self.world.transmit(end, bytes),
            Step::Carry { end, bytes } => self.world.carry(end, bytes),
            Step::Refuse { end, jitter } => self.world.refuse(end, jitter),
            Step::Lose { end, bytes } => self.world.lose(end, bytes),
            Step::Cut => self.world.cut(),
            Step::Connect => self.world.connect(),
            Step::Pass { nanos } => self.world.pass(nanos),
            Step::Restart { end } => {
                self.world.restart(end);
                // Whoever read or wrote there is gone.
                self.flows.retain(|flow| flow.reader.0 != end);
                self.flows.iter_mut().for_each(|flow| flow.writer_is_gone = true);
            }
        }
    }

    fn call(&mut self, end: usize) {
        if self.flows.len() >= 12 {
            return;
        }
        if self.world.is_line() {
            // An end may not know yet that the other is another, and call the one before.
            self.world.settle(20_000 * MS);
        }
        let (caller, callee) = self.world.streams(end);
        let there = (1 - end, callee);
        for (writer, reader) in [((end, caller), there), (there, (end, caller))] {
            self.flows.push(Flow::new(writer, reader));
        }
    }

    fn close(&mut self, end: usize, stream: usize) {
        let Some(at) = self.nth(stream, |flow| flow.writer.0 == end && !flow.writer_is_gone) else { return };
        let closed = self.flows[at].writer;
        self.world.ends[end].close(closed.1);
        self.flows.retain(|flow| flow.reader != closed);
        for flow in self.flows.iter_mut().filter(|flow| flow.writer == closed) {
            flow.writer_is_gone = true;
            flow.is_closed = true;
        }
    }

    fn write(&mut self, end: usize, stream: usize, len: usize) {
        let Some(at) = self.nth(stream, |flow| flow.writer.0 == end && !flow.writer_is_gone) else { return };
        let bytes: Vec<u8> = (0..len).map(|at| self.next_byte.wrapping_add((at * 7) as u8)).collect();
        self.next_byte = self.next_byte.wrapping_add(len as u8);
        let flow = &mut self.flows[at];
        let writer = flow.writer;
        match self.world.ends[end].write(flow.writer.1, &bytes) {
            Ok(taken) => {
                assert!(!flow.finished || len == 0);
                flow.under_way.extend(&bytes[..taken.unwrap_or(0)]);
            }
            Err(StreamError::Shutdown) => assert!(flow.finished || self.may_reset),
            Err(other) => {
                let is_read = self.flows.iter().any(|flow| flow.writer == writer);
                assert!(self.may_reset || !is_read || self.is_closed_by_peer(writer), "{other:?}");
            }
        }
    }

    fn read(&mut self, end: usize, stream: usize, len: usize) {
        let Some(at) = self.nth(stream, |flow| flow.reader.0 == end) else { return };
        self.read_flow(at, len);
    }

    fn read_flow(&mut self, at: usize, len: usize) -> bool {
        let flow = &mut self.flows[at];
        let mut into = vec![0; len];
        match self.world.ends[flow.reader.0].read(flow.reader.1, &mut into) {
            Ok(Some(0)) => {
                let has_ended = flow.finished || flow.is_closed;
                assert!(has_ended && flow.under_way.is_empty(), "an end before the end");
                false
            }
            Ok(Some(read)) => {
                assert!(!flow.reset, "bytes after an error");
                let expected: Vec<u8> = flow.under_way.drain(..read).collect();
                assert!(into[..read] == expected, "bytes that were not written, or not then");
                true
            }
            Ok(None) => false,
            Err(error) => {
                assert!(self.may_reset || flow.is_closed, "{error:?}");
                flow.reset = true;
                false
            }
        }
    }

    /// Heals the channel: everything must arrive, or the reader must have been told.
    fn finish(mut self) {
        for _ in 0..200 {
            self.world.settle(20_000 * MS);
            let mut moved = false;
            for at in 0..self.flows.len() {
                while self.read_flow(at, 50_000) {
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        for flow in &self.flows {
            let left = flow.under_way.len();
            assert!(left == 0 || flow.reset, "{left} bytes are neither read nor said to be lost: {flow:?}");
        }
        assert!(self.may_reset || self.world.ended == [0, 0]);
        self.leave_nothing();
    }

    fn leave_nothing(&mut self) {
        self.world.settle(20_000 * MS);
        for flow in &self.flows {
            self.world.ends[flow.reader.0].close(flow.reader.1);
            if !flow.writer_is_gone {
                self.world.ends[flow.writer.0].close(flow.writer.1);
            }
        }
        self.world.close_called();
        self.world.settle(20_000 * MS);
        assert!(self.world.ends.iter().all(|end| end.is_drained()), "closed streams are not forgotten");
    }

    /// Whether the other direction of the stream of `writer` was closed, and so this one may fail.
    fn is_closed_by_peer(&self, writer: (usize, StreamId)) -> bool {
        self.flows.iter().any(|flow| flow.reader == writer && flow.is_closed)
    }

    fn nth(&self, nth: usize, of: impl Fn(&Flow) -> bool) -> Option<usize> {
        (0..self.flows.len()).filter(|at| of(&self.flows[*at])).nth(nth)
    }
}
