//! Lanes, their proposals and what the target makes of them, on a model made of a hash.

// Other test binaries use more of it.
#[allow(dead_code)]
#[path = "../../mach-engine/tests/double/mod.rs"]
mod double;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use double::Double;
use mach_models::{Model, SequenceState};
use mach_specdec::policy::{BlockPolicy, Cycle, Held};
use mach_specdec::{
    Argmax, Choice, DraftError, Drafting, LabelProposer, Lane, Proposal, Proposed, Proposer, Speculator,
    Taps, Verified, verify,
};

const VOCAB: usize = 64;

/// What happened to a proposer and its policy.
#[derive(Debug, Default, PartialEq)]
struct Log {
    asked: Vec<usize>,
    observed: usize,
    restored: Vec<usize>,
    cycles: Vec<(usize, usize, usize)>,
}

struct Scripted {
    name: &'static str,
    taps: &'static [usize],
    tokens: Vec<u32>,
    fails: bool,
    log: Arc<Mutex<Log>>,
}

impl Scripted {
    fn check(&self) -> Result<(), DraftError> {
        if self.fails { Err(DraftError::NotFinite) } else { Ok(()) }
    }
}

impl Proposer for Scripted {
    fn name(&self) -> &'static str {
        self.name
    }
    fn taps(&self) -> &[usize] {
        self.taps
    }
    fn observe(&mut self, _model: &mut dyn Model, features: &[f32], _: &[u32]) -> Result<(), DraftError> {
        self.log.lock().unwrap().observed += features.len();
        self.check()
    }
    fn save(&mut self, _model: &mut dyn Model, _: &[u32]) -> Result<Option<SequenceState>, DraftError> {
        self.check()?;
        let mut state = SequenceState::without_layers();
        state.advance(7);
        Ok(Some(state))
    }
    fn restore(&mut self, context: &SequenceState) {
        self.log.lock().unwrap().restored.push(context.position());
    }
    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        self.log.lock().unwrap().asked.push(drafting.most);
        self.check()?;
        out.tokens.extend(&self.tokens);
        out.margins.extend((0..self.tokens.len()).map(|i| i as f32));
        Ok(())
    }
}

struct Rows {
    rows: usize,
    keeps: usize,
    held: Held,
    log: Arc<Mutex<Log>>,
}

impl BlockPolicy for Rows {
    fn block(&mut self) -> usize {
        self.rows
    }
    fn trim(&mut self, drafted: usize, margins: &[f32]) -> usize {
        assert_eq!(margins.len(), drafted);
        drafted.min(self.keeps)
    }
    fn record(&mut self, cycle: &Cycle) {
        self.log.lock().unwrap().cycles.push((cycle.drafted, cycle.proposed, cycle.accepted));
    }
    fn low(&self) -> bool {
        self.rows == 4
    }
    fn held(&self) -> Held {
        self.held
    }
}

/// A lane, and what happens to it. All that it proposes is verified unless the test changes the policy.
fn lane(
    name: &'static str,
    taps: &'static [usize],
    tokens: &[u32],
    change: impl FnOnce(&mut Scripted, &mut Rows),
) -> (Lane, Arc<Mutex<Log>>) {
    let log = Arc::<Mutex<Log>>::default();
    let mut proposer = Scripted { name, taps, tokens: tokens.to_vec(), fails: false, log: Arc::clone(&log) };
    let mut policy = Rows { rows: 16, keeps: usize::MAX, held: Held::No, log: Arc::clone(&log) };
    change(&mut proposer, &mut policy);
    (Lane::new(Box::new(proposer), Box::new(policy)), log)
}

fn propose(speculator: &mut Speculator, last: &[u32], most: usize) -> Proposal {
    speculator.propose(&[1, 2, 3], last, most, &mut Double::new(VOCAB, 100), &mut Argmax)
}

#[test]
fn the_first_lane_that_proposes_is_followed() {
    let (silent, silent_log) = lane("silent", &[], &[], |_, p| p.rows = 4);
    let (says, says_log) = lane("says", &[], &[5, 6, 7, 8], |_, p| p.held = Held::Shortened);
    let (never, never_log) = lane("never", &[], &[9], |_, _| ());
    let mut speculator = Speculator::new(vec![silent, says, never]);
    assert_eq!(format!("{speculator:?}"), r#"["silent", "says", "never"]"#);
    let proposal = propose(&mut speculator, &[], 9);
    assert_eq!((proposal.proposer, &proposal.tokens[..]), (Some("says"), &[5, 6, 7, 8][..]));
    assert_eq!((proposal.low, proposal.held), (true, Held::Shortened));
    // As many as the policy or the caller wants, whichever is less.
    assert_eq!(silent_log.lock().unwrap().asked, [3]);
    assert_eq!(says_log.lock().unwrap().asked, [9]);
    assert_eq!(*never_log.lock().unwrap(), Log::default());
    // The lane that proposed learns from it, and nobody else does.
    let verified = Verified { proposed: 4, accepted: 2, emitted: 3, finished: false };
    let cycle = speculator.record(&proposal, &verified, Duration::from_secs(2));
    assert_eq!((cycle.drafted, cycle.proposed, cycle.accepted, cycle.verify_seconds), (4, 4, 2, 2.0));
    assert_eq!(says_log.lock().unwrap().cycles, [(4, 4, 2)]);
    assert!(silent_log.lock().unwrap().cycles.is_empty());
    // From plain decoding the first one learns.
    let mut nothing = proposal;
    nothing.truncate(0);
    speculator.record(&nothing, &Verified::default(), Duration::from_secs(1));
    assert_eq!(silent_log.lock().unwrap().cycles, [(0, 0, 0)]);
}

#[test]
fn proposals_are_cut_where_they_must_end() {
    let cut = |tokens: &[u32], last: &[u32], most: usize, keeps: usize| {
        let (one, _) = lane("one", &[], tokens, |_, p| p.keeps = keeps);
        propose(&mut Speculator::new(vec![one]), last, most).tokens
    };
    assert_eq!(cut(&[5, 6, 7, 8], &[], 9, usize::MAX), [5, 6, 7, 8]);
    assert_eq!(cut(&[5, 6, 7, 8], &[], 2, usize::MAX), [5, 6]);
    assert_eq!(cut(&[5, 6, 7, 8], &[6], 9, usize::MAX), [5, 6], "behind the end is nothing");
    assert_eq!(cut(&[5, VOCAB as u32, 7], &[], 9, usize::MAX), [5], "there is no such token");
    assert_eq!(cut(&[5, VOCAB as u32 - 1, 7], &[], 9, usize::MAX), [5, 63, 7]);
    assert_eq!(cut(&[5, 6, 7, 8], &[], 9, 1), [5], "more is not worth it");
}

#[test]
fn who_is_not_to_try_is_not_asked() {
    let (held, log) = lane("held", &[], &[5], |_, p| (p.rows, p.held) = (1, Held::Skipped));
    let mut speculator = Speculator::new(vec![held]);
    let proposal = propose(&mut speculator, &[], 9);
    assert_eq!((proposal.proposer, proposal.held), (None, Held::Skipped));
    assert!(log.lock().unwrap().asked.is_empty() && !speculator.is_empty());
    let (one, log) = lane("one", &[], &[5], |_, _| ());
    assert!(propose(&mut Speculator::new(vec![one]), &[], 0).tokens.is_empty());
    assert!(log.lock().unwrap().asked.is_empty());
}

#[test]
fn who_fails_is_given_up() {
    for how in ["propose", "observe", "save", "restore"] {
        let (broken, log) = lane("broken", &[3], &[5], |s, _| s.fails = true);
        let (plain, _) = lane("plain", &[], &[6], |_, _| ());
        let mut speculator = Speculator::new(vec![broken, plain]);
        assert_eq!(speculator.taps(), [3]);
        let model = &mut Double::new(VOCAB, 100);
        match how {
            "propose" => assert_eq!(propose(&mut speculator, &[], 9).proposer, Some("plain")),
            "observe" => speculator.observe(model, &[0.0; 4], &[]),
            "save" => assert!(speculator.save(model, &[]).is_none()),
            _ => speculator.restore(None),
        }
        let failure = speculator.take_failure();
        match how {
            "restore" => assert_eq!(failure, None, "that is no failure"),
            _ => assert!(failure.as_ref().is_some_and(|why| why.starts_with("broken: ")), "{failure:?}"),
        }
        assert!(speculator.take_failure().is_none(), "it is told once");
        let asked = log.lock().unwrap().asked.len();
        assert_eq!(propose(&mut speculator, &[], 9).proposer, Some("plain"));
        assert_eq!(log.lock().unwrap().asked.len(), asked, "{how}");
        assert!(speculator.taps().is_empty() && speculator.save(model, &[]).is_none());
        let observed = log.lock().unwrap().observed;
        speculator.observe(model, &[0.0; 4], &[]);
        assert_eq!((log.lock().unwrap().observed, speculator.is_empty()), (observed, false));
    }
    let (broken, _) = lane("broken", &[3], &[5], |s, _| s.fails = true);
    let mut alone = Speculator::new(vec![broken]);
    propose(&mut alone, &[], 9);
    assert!(alone.is_empty() && Speculator::default().is_empty());
}

#[test]
fn only_who_has_taps_sees_features_and_keeps_something() {
    let (plain, plain_log) = lane("plain", &[], &[], |_, _| ());
    let (draft, draft_log) = lane("draft", &[1, 4], &[5], |_, _| ());
    let mut speculator = Speculator::new(vec![plain, draft]);
    let model = &mut Double::new(VOCAB, 100);
    assert_eq!(speculator.taps(), [1, 4]);
    speculator.observe(model, &[0.0; 6], &[]);
    let saved = speculator.save(model, &[]).unwrap();
    assert_eq!(saved.position(), 7);
    speculator.restore(Some(&saved));
    assert_eq!(*draft_log.lock().unwrap(), Log { observed: 6, restored: vec![7], ..Log::default() });
    assert_eq!(*plain_log.lock().unwrap(), Log::default());
    assert_eq!(propose(&mut speculator, &[], 9).proposer, Some("draft"), "it goes on");
}

#[test]
fn what_the_target_chooses_itself_is_kept() {
    let run = |proposed: &[u32], chosen: &[u32], last: usize| {
        let mut model = Double::new(VOCAB, 100);
        let (mut state, mut row) = (model.new_state(), 0);
        state.advance(10);
        let mut choose = |logits: &mut [f32]| {
            assert_eq!(logits.len(), VOCAB);
            row += 1;
            Ok::<_, String>(Choice { token: chosen[row - 1], last: row == last })
        };
        let verified =
            verify(&mut model, &mut state, 1, proposed, &mut Taps::default(), &mut choose).unwrap();
        // The state has the anchor and what followed.
        assert_eq!(state.position(), 10 + verified.emitted);
        (verified.proposed, verified.accepted, verified.emitted, verified.finished)
    };
    assert_eq!(run(&[], &[5], 0), (0, 0, 1, false));
    assert_eq!(run(&[5, 6, 7], &[5, 6, 7, 8], 0), (3, 3, 4, false));
    assert_eq!(run(&[5, 6, 7], &[5, 9], 0), (3, 1, 2, false));
    assert_eq!(run(&[5, 6, 7], &[9], 0), (3, 0, 1, false));
    assert_eq!(run(&[5, 6, 7], &[5, 6], 2), (3, 2, 2, true));
    assert_eq!(run(&[], &[5], 1), (0, 0, 1, true));
}

#[test]
fn an_answer_that_can_only_go_on_one_way_is_proposed_up_to_the_next_branch() {
    let says = |answers: &[&[u32]], tokens: &[u32], most: usize| {
        let mut labels = LabelProposer::new(2, answers.iter().copied());
        assert_eq!(labels.name(), "label");
        let mut out = Proposed::default();
        let model = &mut Double::new(VOCAB, 100);
        labels.propose(Drafting { tokens, most, model, picker: &mut Argmax }, &mut out).unwrap();
        out.tokens
    };
    let three = [&[10, 11, 12, 13][..], &[10, 11, 20], &[30]];
    assert!(says(&three, &[1, 2], 9).is_empty(), "it begins one way or another");
    assert_eq!(says(&three, &[1, 2, 10], 9), [11]);
    assert!(says(&three, &[1, 2, 10, 11], 9).is_empty());
    assert_eq!(says(&three, &[1, 2, 10, 11, 12], 9), [13]);
    assert!(says(&three, &[1, 2, 10, 11, 12, 13], 9).is_empty(), "it is complete");
    assert!(says(&three, &[1, 2, 11], 9).is_empty(), "it is another answer");
    assert_eq!(says(&three[..1], &[1, 2], 9), [10, 11, 12, 13]);
    assert_eq!(says(&three[..1], &[1, 2, 10], 2), [11, 12]);
}
