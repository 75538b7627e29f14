//! The memory budget: what the process will hold, settled before anything is allocated and announced at the start.

use std::fmt;

use mach_engine::EngineConfig;
use mach_models::ModelCard;
use mach_server::{Held, MemoryPart, MemoryPlan};

/// What a model needs, in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// What the process holds before weights are loaded, and what threads and connections take.
    pub(crate) base: usize,
    /// Weights outside the experts.
    pub(crate) resident: usize,
    /// Weights of the draft.
    pub(crate) draft: usize,
    /// Working memory of a pass.
    pub(crate) scratch: usize,
    /// One expert.
    pub(crate) slot: usize,
    /// Number of experts.
    pub(crate) experts: usize,
    /// Number of experts that one token uses.
    pub(crate) working_set: usize,
    /// Number of slots of the arena.
    pub(crate) arena_slots: usize,
    /// The prefix cache in memory, if its size was asked for.
    pub(crate) prefix: usize,
    /// Snapshots of it that wait to be saved, if its size was asked for.
    pub(crate) saves: usize,
    /// What requests take before they are state.
    pub(crate) requests: Requests,
    /// State of the shortest useful sequence.
    pub(crate) least_state: usize,
    /// State of as many and as long sequences as the settings allow.
    pub(crate) most_state: usize,
}

impl Needs {
    /// What is neither weights nor experts, in words.
    fn rest(&self) -> String {
        let work = Gb(self.base + self.requests.total() + self.scratch + self.least_state);
        match self.prefix + self.saves {
            0 => format!("{work} of working memory and state"),
            bytes => format!("{work} of working memory and state, {} of prefix cache", Gb(bytes)),
        }
    }
}

/// Memory of requests, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// The account of bodies, of what is made of them, and of the work that makes it.
    pub(crate) account: usize,
    /// Grammars that are kept, and those that sequences follow.
    pub(crate) grammars: usize,
    /// Buffers of connections.
    pub(crate) connections: usize,
    /// Answers that wait to be read.
    pub(crate) unread: usize,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clients {
    /// Bytes of the account, if they were asked for.
    pub(crate) account: Option<usize>,
    /// Connections that may be open.
    pub(crate) connections: usize,
    /// Bytes of a head, which is as much as a connection buffers.
    pub(crate) head: usize,
    /// Bytes of answers that may wait to be read, if they were asked for.
    pub(crate) unread: Option<usize>,
    /// Bytes that the store of responses takes.
    pub(crate) store: usize,
}

impl Requests {
    /// The least account that serves, and the one that does where there is enough.
    const ACCOUNT: (usize, usize) = (64 << 20, 256 << 20);
    /// Bytes of the account for each token of the context: its text several times over, as it is rendered and tokenized.
    const OF_TOKEN: usize = 512;
    /// Part of all memory that the account takes at most, unless asked to.
    const PART: usize = 8;
    /// Bytes of grammars that are kept, and of one that a sequence follows, at least and at most.
    const KEPT: usize = 16 << 20;
    const FOLLOWED: (usize, usize) = (4 << 20, 24 << 20);
    /// Bytes of answers that may wait to be read, and the part of all memory that they take at most, unless asked to.
    const UNREAD: (usize, usize) = (64 << 20, 32);
    /// What a connection takes beside its buffer.
    const CONNECTION: usize = 16 << 10;

    /// For these clients of a model with this context that answers so many at one time, within `limit` bytes for all of the process.
    pub(crate) fn of(clients: Clients, limit: Option<usize>, context: usize, sequences: usize) -> Self {
        let (least, enough) = Self::ACCOUNT;
        let usual = || {
            let most = limit.map_or(usize::MAX, |limit| limit / Self::PART);
            enough.max(context.saturating_mul(Self::OF_TOKEN)).min(most).max(least)
        };
        let account = clients.account.unwrap_or_else(usual);
        let followed = (account / 2 / sequences.max(1)).clamp(Self::FOLLOWED.0, Self::FOLLOWED.1);
        Self {
            account,
            grammars: Self::KEPT + sequences.max(1) * followed,
            connections: clients
                .connections
                .saturating_mul(clients.head + Self::CONNECTION)
                .saturating_add(clients.store),
            unread: clients.unread.unwrap_or_else(|| {
                let (enough, part) = Self::UNREAD;
                limit.map_or(enough, |limit| enough.min(limit / part))
            }),
        }
    }

    /// All of them.
    pub(crate) fn total(self) -> usize {
        self.account + self.grammars + self.connections + self.unread
    }
}

/// What the operator said, and what the machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// `--memory-gb`: all of the process.
    pub(crate) memory: Option<usize>,
    /// `--expert-cache-gb`: the bank.
    pub(crate) bank: Option<usize>,
    /// `--wired-gb`: weights, bank and arena.
    pub(crate) wired: Option<usize>,
    /// What the system can give beyond what the process has.
    pub(crate) available: Option<usize>,
}

/// Share of the available memory that is taken unless told otherwise.
const SAFE_SHARE: f64 = 0.9;

/// Bound of wired memory while streaming, unless told otherwise.
pub(crate) const DEFAULT_WIRED: usize = 9_000_000_000;

/// Part of what remains for bank and state together that state may take.
const STATE_PART: usize = 4;

/// How memory is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// See [`Needs`].
    pub(crate) needs: Needs,
    /// Slots of the bank.
    pub(crate) bank_slots: usize,
    /// Slots of the arena; none if all experts are in memory.
    pub(crate) arena_slots: usize,
    /// Bytes for the state of sequences.
    pub(crate) state: usize,
}

impl Budget {
    /// Bytes of the bank.
    pub(crate) fn bank(&self) -> usize {
        self.bank_slots * self.needs.slot
    }

    /// Bytes of the arena.
    pub(crate) fn arena(&self) -> usize {
        self.arena_slots * self.needs.slot
    }

    /// All bytes.
    pub(crate) fn total(&self) -> usize {
        let Needs { base, resident, draft, scratch, prefix, saves, requests, .. } = self.needs;
        let rest = base + resident + draft + scratch + prefix + saves + requests.total();
        rest + self.bank() + self.arena() + self.state
    }
}

impl Budget {
    /// The parts by name, with what the engine's settings have made of them and what is known to be in use.
    pub(crate) fn plan(&self, settings: &EngineConfig, card: &ModelCard, draft: Option<usize>) -> MemoryPlan {
        let needs = &self.needs;
        let prefix = settings.prefix.as_ref();
        let (prefixes, saves) = prefix.map_or((0, 0), |prefix| (prefix.max_bytes, prefix.saving_bytes()));
        // The prefix cache lives on what the state of sequences does not need, unless it has a size of its own.
        let state = settings.state_budget.unwrap_or(self.state);
        let weights = card.device.as_ref().map_or(0, |device| device.resident_weight_bytes as usize);
        let parts = [
            ("weights", needs.resident, Held::Always(weights)),
            ("draft", needs.draft, Held::Always(draft.unwrap_or(0))),
            ("experts", self.bank(), Held::Bank),
            ("arena", self.arena(), Held::Always(self.arena())),
            ("state", state, Held::State),
            ("prefixes", prefixes, Held::Prefixes),
            ("saves", saves, Held::Uncounted),
            ("requests", needs.requests.account, Held::Requests),
            ("grammars", needs.requests.grammars, Held::Uncounted),
            ("connections", needs.requests.connections, Held::Uncounted),
            ("unread", needs.requests.unread, Held::Uncounted),
            ("scratch", needs.scratch, Held::Uncounted),
            ("process", needs.base, Held::Uncounted),
        ];
        let parts = parts.into_iter().filter(|&(_, budget, _)| budget > 0);
        let parts = parts.map(|(name, budget, held)| MemoryPart { name, budget, held });
        MemoryPlan { budget: self.total(), parts: parts.collect(), process: crate::memory::resident }
    }
}

/// Bytes as decimal gigabytes, as the flags take them.
struct Gb(usize);

impl fmt::Display for Gb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // Two digits behind the point of a gigabyte say nothing of these.
            bytes if bytes < 100_000_000 => write!(f, "{:.2} MB", bytes as f64 / 1e6),
            bytes => write!(f, "{:.2} GB", bytes as f64 / 1e9),
        }
    }
}

impl Bounds {
    /// Most bytes that the process may hold, and whose word that is.
    pub(crate) fn limit(&self, base: usize) -> Option<(usize, String)> {
        if let Some(bytes) = self.memory {
            return Some((bytes, format!("--memory-gb allows {}", Gb(bytes))));
        }
        let bytes = (self.available? as f64 * SAFE_SHARE) as usize + base;
        let source = format!("this machine or its control group can safely give {}", Gb(bytes));
        Some((bytes, source))
    }
}

/// A budget with all experts in memory.
pub(crate) fn resident(needs: Needs, bounds: Bounds) -> Result<Budget, String> {
    let mut budget = Budget { needs, bank_slots: needs.experts, arena_slots: 0, state: needs.least_state };
    let Some((limit, source)) = bounds.limit(needs.base) else {
        return Ok(Budget { state: needs.most_state, ..budget });
    };
    if budget.total() > limit {
        return Err(format!(
            "all experts in memory need {}: {} of experts, {} of other weights, {}; {source}",
            Gb(budget.total()),
            Gb(budget.bank()),
            Gb(needs.resident + needs.draft),
            needs.rest(),
        ));
    }
    budget.state = needs.most_state.min(needs.least_state + limit - budget.total());
    Ok(budget)
}

/// A budget with a bank of some experts.
pub(crate) fn streaming(needs: Needs, bounds: Bounds) -> Result<Budget, String> {
    let slot = needs.slot.max(1);
    let nothing = Budget { needs, bank_slots: 0, arena_slots: needs.arena_slots, state: needs.least_state };
    let one_token = needs.working_set * slot;
    let limit = bounds.limit(needs.base);
    let room = match &limit {
        None => usize::MAX,
        Some((limit, source)) => limit.checked_sub(nothing.total()).ok_or_else(|| {
            format!(
                "streaming needs at least {} beside the bank: {} of weights outside the experts, {} of arena, {}; {source}",
                Gb(nothing.total()),
                Gb(needs.resident + needs.draft),
                Gb(nothing.arena()),
                needs.rest(),
            )
        })?,
    };
    // A budget for everything replaces the default bound, not one that was asked for.
    let default_wired = (bounds.memory.is_none()).then_some(DEFAULT_WIRED);
    let fixed = needs.resident + needs.draft + nothing.arena();
    let wired_room = match bounds.wired.or(default_wired) {
        None => usize::MAX,
        Some(wired) => wired.checked_sub(fixed).ok_or_else(|| {
            format!(
                "--wired-gb: weights outside the experts and the arena alone take {}, more than {}",
                Gb(fixed),
                Gb(wired)
            )
        })?,
    };
    let slots = match bounds.bank {
        Some(bytes) => {
            let slots = (bytes / slot).min(needs.experts);
            if slots > 0 && slots < needs.working_set || bytes > 0 && slots == 0 {
                return Err(format!(
                    "--expert-cache-gb: {} holds {slots} experts; one token uses {}, which take {}: give at least that, or 0 to \
                     read every expert when it is needed",
                    Gb(bytes),
                    needs.working_set,
                    Gb(one_token),
                ));
            }
            if slots * slot > wired_room {
                return Err(format!(
                    "--expert-cache-gb: {} with {} of other weights and arena is more than --wired-gb allows ({})",
                    Gb(bytes),
                    Gb(fixed),
                    Gb(bounds.wired.or(default_wired).unwrap_or(0)),
                ));
            }
            if slots * slot > room {
                let source = limit.map(|(_, source)| source).unwrap_or_default();
                return Err(format!(
                    "--expert-cache-gb: {} with {} for everything else is too much: {source}",
                    Gb(bytes),
                    Gb(nothing.total()),
                ));
            }
            slots
        }
        None => {
            let state_part =
                (room / STATE_PART).min(needs.most_state - needs.least_state.min(needs.most_state));
            let slots = ((room - state_part).min(wired_room) / slot).min(needs.experts);
            // The bank comes first while it cannot hold one token's experts.
            let slots = slots.max(needs.working_set.min(room.min(wired_room) / slot));
            if slots < needs.working_set {
                let source = limit.map(|(_, source)| source).unwrap_or_default();
                return Err(format!(
                    "the bank would hold {slots} experts; one token uses {}, which take {} beside {} for everything else; \
                     {source}; --wired-gb leaves {} for the bank; --expert-cache-gb 0 reads every expert when it is needed",
                    needs.working_set,
                    Gb(one_token),
                    Gb(nothing.total()),
                    Gb(wired_room.min(room)),
                ));
            }
            slots
        }
    };
    let left = room - slots * slot;
    Ok(Budget {
        bank_slots: slots,
        state: needs.most_state.min(needs.least_state.saturating_add(left)),
        ..nothing
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1_000_000;

    fn needs() -> Needs {
        Needs {
            base: 50 * MB,
            resident: 1000 * MB,
            draft: 0,
            prefix: 0,
            saves: 0,
            requests: Requests::default(),
            scratch: 100 * MB,
            slot: 2 * MB,
            experts: 8000,
            working_set: 300,
            arena_slots: 60,
            least_state: 70 * MB,
            most_state: 4000 * MB,
        }
    }

    #[test]
    fn everything_announced_stays_under_the_limit() {
        for gb in [2.0, 2.5, 4.0, 8.0, 17.0, 40.0] {
            let memory = (gb * 1e9) as usize;
            let bounds = Bounds { memory: Some(memory), ..Bounds::default() };
            let budget = streaming(needs(), bounds).unwrap();
            assert!(budget.total() <= memory, "{gb}: {budget:?}");
            assert!(budget.bank_slots >= 300 && budget.state >= 70 * MB);
            if gb > 2.0 && gb < 20.0 {
                assert!(budget.total() + 2 * MB > memory, "{gb}: nothing is wasted, {budget:?}");
            }
        }
        let budget = streaming(needs(), Bounds { available: Some(4000 * MB), ..Bounds::default() }).unwrap();
        assert!(budget.total() <= 3650 * MB);
        // Without a word on memory the bank stops at the default of wired memory.
        let budget =
            streaming(needs(), Bounds { available: Some(64_000 * MB), ..Bounds::default() }).unwrap();
        assert_eq!(budget.bank() + budget.arena() + 1000 * MB, DEFAULT_WIRED);
        assert_eq!(budget.state, 4000 * MB);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let bounds = |f: &dyn Fn(&mut Bounds)| {
            let mut bounds = Bounds { available: Some(20_000 * MB), ..Bounds::default() };
            f(&mut bounds);
            bounds
        };
        let error = streaming(needs(), bounds(&|b| b.memory = Some(1000 * MB))).unwrap_err();
        assert!(
            error.contains("at least 1.34 GB") && error.contains("--memory-gb allows 1.00 GB"),
            "{error}"
        );
        let error = streaming(needs(), bounds(&|b| b.memory = Some(1500 * MB))).unwrap_err();
        assert!(error.contains("one token uses 300, which take 0.60 GB"), "{error}");
        let error = streaming(needs(), bounds(&|b| b.bank = Some(100 * MB))).unwrap_err();
        assert!(error.contains("holds 50 experts") && error.contains("0.60 GB"), "{error}");
        let error = streaming(needs(), bounds(&|b| b.bank = Some(12_000 * MB))).unwrap_err();
        assert!(error.contains("--wired-gb"), "{error}");
        let error = streaming(needs(), bounds(&|b| b.wired = Some(500 * MB))).unwrap_err();
        assert!(error.contains("--wired-gb") && error.contains("1.12 GB"), "{error}");
        let error = resident(needs(), bounds(&|b| b.memory = Some(10_000 * MB))).unwrap_err();
        assert!(error.contains("17.22 GB") && error.contains("16.00 GB of experts"), "{error}");
    }

    #[test]
    fn a_prefix_cache_that_was_asked_for_is_had_or_refused() {
        let needs = Needs { prefix: 700 * MB, ..needs() };
        let bounds = Bounds { memory: Some(4000 * MB), ..Bounds::default() };
        let budget = streaming(needs, bounds).unwrap();
        assert!(budget.total() <= 4000 * MB && budget.total() + 2 * MB > 4000 * MB);
        let error = streaming(needs, Bounds { memory: Some(1900 * MB), ..bounds }).unwrap_err();
        assert!(error.contains("at least 2.04 GB") && error.contains("0.70 GB of prefix cache"), "{error}");
        let few = Needs { most_state: 70 * MB, ..needs };
        assert_eq!(resident(few, Bounds { memory: Some(20_000 * MB), ..bounds }).unwrap().state, 70 * MB);
    }

    #[test]
    fn requests_are_part_of_it() {
        let clients = Clients { account: None, connections: 100, head: 64 << 10, unread: None, store: 0 };
        let large = Requests::of(clients, Some(20_000 * MB), 8192, 4);
        assert_eq!(
            (large.account, large.grammars, large.connections, large.unread),
            (256 << 20, 112 << 20, 100 * (80 << 10), 64 << 20)
        );
        assert_eq!(large.total(), ((256 + 112 + 64) << 20) + large.connections);
        let long = Requests::of(clients, Some(20_000 * MB), 1 << 20, 4);
        assert_eq!(long.account, 512 << 20);
        let small = Requests::of(clients, Some(1000 * MB), 1 << 20, 4);
        assert_eq!((small.account, small.unread), (125 * MB, 1000 * MB / 32));
        let more = Requests::of(Clients { unread: Some(1 << 30), ..clients }, Some(1000 * MB), 1 << 20, 4);
        assert_eq!((more.unread, more.total() - small.total()), (1 << 30, (1 << 30) - small.unread));
        let asked = Requests::of(Clients { account: Some(32 << 20), ..clients }, None, 8192, 64);
        assert_eq!((asked.account, asked.grammars), (32 << 20, (16 + 64 * 4) << 20));
        let needs = Needs { requests: small, ..needs() };
        let bounds = Bounds { memory: Some(4000 * MB), ..Bounds::default() };
        let budget = streaming(needs, bounds).unwrap();
        assert!(budget.total() <= 4000 * MB && budget.total() + 2 * MB > 4000 * MB);
        assert_eq!(budget.total() - Budget { needs: super::tests::needs(), ..budget }.total(), small.total());
    }

    #[test]
    fn no_bank_at_all_can_be_asked_for() {
        let bounds = Bounds { bank: Some(0), memory: Some(1500 * MB), ..Bounds::default() };
        let budget = streaming(needs(), bounds).unwrap();
        assert_eq!((budget.bank_slots, budget.arena_slots), (0, 60));
        let bounds = Bounds { bank: Some(3000 * MB), available: Some(20_000 * MB), ..Bounds::default() };
        assert_eq!(streaming(needs(), bounds).unwrap().bank_slots, 1500);
    }

    #[test]
    fn all_experts_and_as_much_state_as_fits() {
        let bounds = Bounds { memory: Some(18_000 * MB), ..Bounds::default() };
        let budget = resident(needs(), bounds).unwrap();
        assert_eq!((budget.total(), budget.bank_slots, budget.arena_slots), (18_000 * MB, 8000, 0));
        assert_eq!(resident(needs(), Bounds::default()).unwrap().state, 4000 * MB);
    }
}
