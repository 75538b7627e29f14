//! Whole days of the scheduler without a model: requests arrive, read prompts from disk, fail, go away, and everybody else is
//! answered, within the limits at every pass.

use std::collections::VecDeque;

use super::*;

/// Shared passes that may fail with a sequence in them before it is given up.
const STRIKES: u8 = 3;

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
struct Wish {
    /// Passes before it arrives.
    arrives: usize,
    prompt: usize,
    answer: usize,
    choices: u32,
    /// Passes that bringing its prompt from disk takes, if others run meanwhile.
    reading: usize,
    /// The pass after which its client goes away.
    leaves: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Guest {
    seen: Active,
    prompt: usize,
    strikes: u8,
}

impl Guest {
    /// Its model has seen so many of its tokens.
    fn view(&mut self, position: usize) {
        self.seen.unseen = self.seen.tokens - position;
        self.seen.decoding = self.seen.tokens > self.prompt && self.seen.unseen == 1;
    }

    fn over(&self) -> bool {
        self.seen.tokens >= self.seen.limit
    }
}

#[derive(Debug)]
struct Asked {
    seen: Pending,
    wish: Wish,
    started: u32,
    /// Passes of reading left, once it has begun.
    reading: Option<usize>,
}

#[derive(Debug)]
struct House {
    limits: Limits,
    /// Passes that fail.
    failures: Vec<usize>,
    outside: VecDeque<Wish>,
    queue: VecDeque<Wish>,
    pending: Vec<Asked>,
    active: Vec<Guest>,
    paused: VecDeque<Guest>,
    requests: Vec<Wish>,
    first_starts: Vec<u64>,
    passes: usize,
    /// Requests of choices that came to their end, and those that did not.
    answered: Vec<u64>,
    failed: Vec<u64>,
}

impl House {
    fn new(limits: Limits, mut wishes: Vec<Wish>, failures: Vec<usize>) -> Self {
        wishes.sort_by_key(|wish| wish.arrives);
        House {
            limits,
            failures,
            outside: wishes.into(),
            queue: VecDeque::new(),
            pending: Vec::new(),
            active: Vec::new(),
            paused: VecDeque::new(),
            requests: Vec::new(),
            first_starts: Vec::new(),
            passes: 0,
            answered: Vec::new(),
            failed: Vec::new(),
        }
    }

    fn plan(&self) -> Step {
        let others = !self.active.is_empty();
        let active: Vec<Active> = self.active.iter().map(|guest| guest.seen).collect();
        let paused = self.paused.iter().map(|g| Paused { tokens: g.seen.tokens, limit: g.seen.limit });
        let pending = self.pending.iter().map(|asked| Pending {
            reading: others && asked.reading.is_some_and(|left| left > 0),
            ..asked.seen
        });
        plan(&View {
            limits: self.limits,
            active: &active,
            paused: &paused.collect::<Vec<_>>(),
            pending: &pending.collect::<Vec<_>>(),
            queued: !self.queue.is_empty(),
            bytes: &bytes,
        })
    }

    /// Lives until nobody is left.
    fn live(&mut self) -> Result<(), TestCaseError> {
        let mut idle = 0;
        loop {
            while self.outside.front().is_some_and(|wish| wish.arrives <= self.passes) {
                self.queue.extend(self.outside.pop_front());
            }
            let step = self.plan();
            idle = if matches!(step, Step::Run(_)) { 0 } else { idle + 1 };
            prop_assert!(idle < 200, "steps without a pass");
            prop_assert!(self.passes < 50_000, "passes without an end");
            match step {
                Step::Pause(index) => self.pause(index)?,
                Step::Resume => self.resume(),
                Step::Take => self.take()?,
                Step::Start(index) => self.start(index)?,
                Step::Run(pass) => {
                    self.run(&pass)?;
                    self.after_a_pass();
                }
                Step::Sleep => {
                    prop_assert!(self.active.is_empty() && self.paused.is_empty());
                    prop_assert!(self.pending.is_empty() && self.queue.is_empty(), "somebody is forgotten");
                    match self.outside.front() {
                        Some(next) => self.passes = next.arrives,
                        None => return Ok(()),
                    }
                }
            }
            prop_assert!(self.active.len() <= self.limits.batch);
        }
    }

    fn pause(&mut self, index: usize) -> Result<(), TestCaseError> {
        let mut guest = self.active.remove(index);
        let age = |guest: &Guest| (guest.seen.request, guest.seen.choice);
        prop_assert!(!self.active.is_empty(), "the last one never gives way");
        prop_assert!(self.active.iter().all(|other| age(other) < age(&guest)), "the youngest gives way");
        prop_assert!(self.paused.iter().all(|other| age(other) > age(&guest)), "the oldest comes back first");
        guest.view(0);
        self.paused.push_front(guest);
        Ok(())
    }

    fn resume(&mut self) {
        self.active.extend(self.paused.pop_front());
    }

    fn take(&mut self) -> Result<(), TestCaseError> {
        prop_assert!(self.limits.continuous || self.active.is_empty() && self.pending.is_empty());
        let Some(wish) = self.queue.pop_front() else { return Ok(()) };
        self.requests.push(wish);
        let seen = Pending {
            request: self.requests.len() as u64,
            tokens: wish.prompt,
            limit: wish.prompt + wish.answer,
            ..Pending::default()
        };
        self.pending.push(Asked { seen, wish, started: 0, reading: None });
        Ok(())
    }

    fn start(&mut self, index: usize) -> Result<(), TestCaseError> {
        prop_assert!(self.paused.is_empty(), "nobody overtakes who gave way");
        let others = !self.active.is_empty();
        let asked = &mut self.pending[index];
        if others && asked.started == 0 && asked.wish.reading > 0 && asked.reading.is_none() {
            asked.reading = Some(asked.wish.reading);
            return Ok(());
        }
        let Pending { request, tokens: prompt, limit, prompt_read, .. } = asked.seen;
        if asked.started == 0 {
            self.first_starts.push(request);
        }
        let seen = Active { request, choice: asked.started, tokens: prompt, limit, ..Active::default() };
        let mut guest = Guest { seen, prompt, strikes: 0 };
        // Later choices begin with a token chosen after the prompt that the first has read.
        guest.seen.tokens += usize::from(prompt_read);
        guest.view(if prompt_read { prompt } else { 0 });
        asked.started += 1;
        asked.seen.started = true;
        if asked.started == asked.wish.choices {
            self.pending.remove(index);
        }
        if guest.over() {
            self.answered.push(request);
        } else {
            self.active.push(guest);
        }
        Ok(())
    }

    fn run(&mut self, pass: &Pass) -> Result<(), TestCaseError> {
        let needed: usize = self.active.iter().map(|guest| bytes(guest.seen.tokens + 1)).sum();
        prop_assert!(self.limits.budget.is_none_or(|budget| needed <= budget), "within the memory");
        if !self.limits.continuous {
            let first = self.active[0].seen.request;
            prop_assert!(
                self.active.iter().all(|guest| guest.seen.request == first),
                "one request at a time"
            );
        }
        if self.failures.contains(&self.passes) {
            self.fail();
            return Ok(());
        }
        let suspected = self.active.iter().any(|guest| guest.seen.suspect);
        match pass {
            Pass::Cycle => {
                let guest = &mut self.active[0];
                // What is proposed and agreed on, and one more.
                guest.seen.tokens = (guest.seen.tokens + 1 + self.passes % 4).min(guest.seen.limit);
                guest.view(guest.seen.tokens - 1);
            }
            Pass::Batch(shares) => {
                let taking_part = shares.iter().filter(|share| share.rows > 0).count();
                prop_assert!(!suspected || taking_part == 1, "a suspect runs alone");
                for (guest, share) in self.active.iter_mut().zip(shares) {
                    let before = guest.seen.tokens;
                    guest.view(before - guest.seen.unseen + share.rows);
                    if share.chooses {
                        prop_assert_eq!(guest.seen.unseen, 0, "a token is chosen after the last");
                        guest.seen.tokens += 1;
                        guest.view(before);
                        guest.seen.suspect = false;
                        let siblings = |asked: &&mut Asked| asked.seen.request == guest.seen.request;
                        self.pending.iter_mut().filter(siblings).for_each(|a| a.seen.prompt_read = true);
                    }
                    let stalls = guest.seen.decoding && share.rows == 0;
                    prop_assert!(suspected || !stalls, "nobody who decodes stalls");
                }
            }
        }
        self.answered.extend(self.active.iter().filter(|guest| guest.over()).map(|guest| guest.seen.request));
        self.active.retain(|guest| !guest.over());
        Ok(())
    }

    /// Whoever was alone is at fault; the others compute again, one by one.
    fn fail(&mut self) {
        let suspect = self.active.iter().find(|guest| guest.seen.suspect);
        let culprit = if self.active.len() == 1 { self.active.first() } else { suspect };
        let mut culprits: Vec<u64> = culprit.map(|guest| guest.seen.request).into_iter().collect();
        if culprits.is_empty() {
            for guest in &mut self.active {
                guest.view(0);
                guest.seen.suspect = true;
                guest.strikes += 1;
            }
            let given_up = self.active.iter().filter(|guest| guest.strikes > STRIKES);
            culprits.extend(given_up.map(|guest| guest.seen.request));
        }
        self.forget(&culprits);
    }

    fn forget(&mut self, gone: &[u64]) {
        self.active.retain(|guest| !gone.contains(&guest.seen.request));
        self.paused.retain(|guest| !gone.contains(&guest.seen.request));
        self.pending.retain(|asked| !gone.contains(&asked.seen.request));
        self.failed.extend(gone);
    }

    fn after_a_pass(&mut self) {
        let passes = self.passes;
        let leaves = |wish: &Wish| wish.leaves == Some(passes);
        let gone: Vec<u64> = (1..).zip(&self.requests).filter(|(_, w)| leaves(w)).map(|(n, _)| n).collect();
        self.forget(&gone);
        for left in self.pending.iter_mut().filter_map(|asked| asked.reading.as_mut()) {
            *left = left.saturating_sub(1);
        }
        self.passes += 1;
    }
}

prop_compose! {
    /// Answers are short, or so long that they outgrow the memory they started with.
    fn any_wish()(arrives in 0usize..1000, prompt in 1usize..200, answer in prop_oneof![1usize..60, AHEAD..4 * AHEAD],
                  choices in 1u32..4, reading in 0usize..8, leaves in prop::option::weighted(0.2, 0usize..1500)) -> Wish {
        Wish { arrives, prompt, answer, choices, reading: reading.saturating_sub(4), leaves }
    }
}

proptest! {
    #[test]
    fn everybody_is_answered_in_turn_within_the_limits(
        wishes in prop::collection::vec(any_wish(), 1..8),
        failures in prop::collection::vec(0usize..1500, 0..6),
        (chunk, interleave) in (1usize..150, 1usize..50),
        (batch, continuous) in (1usize..6, any::<bool>()),
        // Bytes that are free when the largest runs alone: an engine has no context that would not fit.
        free in prop::option::weighted(0.8, 0usize..8_000),
    ) {
        let largest = wishes.iter().map(|wish| wish.prompt + wish.answer).max().unwrap_or(0);
        let budget = free.map(|free| bytes(largest) + free);
        let limits = Limits { chunk, interleave, batch, continuous, budget };
        let all = wishes.len();
        let mut house = House::new(limits, wishes, failures);
        house.live()?;
        prop_assert!(house.first_starts.is_sorted(), "nobody overtakes");
        for (number, wish) in (1..).zip(&house.requests) {
            let answered = house.answered.iter().filter(|&&request| request == number).count();
            let failed = house.failed.contains(&number);
            prop_assert!(failed || answered == wish.choices as usize, "{} of request {}", answered, number);
        }
        prop_assert_eq!(house.requests.len(), all);
    }
}
