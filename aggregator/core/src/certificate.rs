//! When certificates of our own are made anew, and with which authority: decided from what the Secret holds, and now.
//!
//! Makes nothing and reads no certificate; whoever does says what it found as a [`Holding`]. What must never happen is
//! that somebody who trusts what was published is shown a certificate of an authority that was not: so a new authority is
//! published while the old one's certificate is still served, and for as long as that lives.
//!
//! ```text
//! bundle   old             new old                          new old
//! leaf     by old    -->   by old, made that moment   -->   by new
//!          authority due   (its key is forgotten)           60 days later
//! ```

use {
    jiff::{SignedDuration, Timestamp},
    std::fmt,
};

/// How long a server's certificate is valid.
pub const LEAF_LIFETIME: SignedDuration = days(90);
/// It is made anew when this is left of it, two thirds through: a month in which somebody may notice that it is not.
pub const LEAF_MARGIN: SignedDuration = days(30);
/// How long an authority is valid.
pub const AUTHORITY_LIFETIME: SignedDuration = days(3_650);
/// It is followed by another when this is left of it: far more than any certificate that it signs, and than pods live.
pub const AUTHORITY_MARGIN: SignedDuration = days(730);
/// Certificates begin so long before they are made: the clocks of those who check them may be late.
pub const BACKDATED: SignedDuration = SignedDuration::from_hours(1);
/// Authorities that are kept at most; the bundle travels in a variable of each pod.
pub const MAX_AUTHORITIES: usize = 4;

const fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * days)
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first moment.
    pub from: Timestamp,
    /// Its last moment.
    pub until: Timestamp,
}

impl Validity {
    /// That of a certificate which is made now.
    #[must_use]
    pub fn beginning(now: Timestamp, lifetime: SignedDuration) -> Self {
        let at = |distance| now.saturating_add(distance).unwrap_or(now);
        Self {
            from: at(-BACKDATED),
            until: at(lifetime),
        }
    }

    /// Whether it covers this moment.
    #[must_use]
    pub fn covers(self, now: Timestamp) -> bool {
        self.from <= now && now <= self.until
    }

    /// Whether it covers this moment and has more than `margin` left.
    fn lasts(self, now: Timestamp, margin: SignedDuration) -> bool {
        self.covers(now) && now < self.ending(margin)
    }

    fn ending(self, margin: SignedDuration) -> Timestamp {
        self.until.saturating_sub(margin).unwrap_or(self.until)
    }
}

/// What a Secret holds, as far as it can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The authorities in its bundle, in their order.
    pub bundle: Vec<Validity>,
    /// To which of them its private key belongs.
    pub signer: Option<usize>,
    /// The server's certificate, when its key is there too.
    pub leaf: Option<Leaf>,
}

/// A server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// When it can be shown.
    pub validity: Validity,
    /// Which authority of the bundle vouches for it, under all the names that the server has.
    pub issuer: Option<usize>,
}

impl Holding {
    /// Whether a client that trusts the bundle would take the certificate at this moment.
    #[must_use]
    pub fn is_usable(&self, now: Timestamp) -> bool {
        self.vouched(now).is_some()
    }

    /// When the certificate can be shown to clients, which is when both it and its authority are valid; `None` when they
    /// would not take it now.
    fn vouched(&self, now: Timestamp) -> Option<Validity> {
        let leaf = self.leaf?;
        let issuer = self.bundle.get(leaf.issuer?)?;
        let both = Validity {
            from: leaf.validity.from.max(issuer.from),
            until: leaf.validity.until.min(issuer.until),
        };
        both.covers(now).then_some(both)
    }
}

/// What is to be done about a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep {
        /// When to look again.
        until: Timestamp,
    },
    /// What was remembered is written back: what is there cannot be served.
    Restore,
    /// Something is made.
    Make(Making),
}

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    /// What is wrong with what is there.
    pub why: Why,
    /// Whether there is a new authority, at the head of the bundle.
    pub authority: bool,
    /// Which authorities of the bundle stay, in their order.
    pub kept: Vec<usize>,
    /// Who signs a new certificate; without one the present certificate stays.
    pub leaf: Option<Signer>,
}

/// Who signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// The authority whose key is in the Secret.
    Present,
    /// The one that is made.
    New,
}

/// Why something is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is nothing usable yet.
    Nothing,
    /// The certificate ends soon.
    LeafDue,
    /// The certificate is not there, has ended, is for other names, or nobody in the bundle vouches for it.
    LeafUnusable,
    /// The authority ends soon.
    AuthorityDue,
    /// The key of the newest authority is not there, or the authority has ended.
    AuthorityUnusable,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "there is none yet",
            Self::LeafDue => "the certificate ends soon",
            Self::LeafUnusable => "the certificate cannot be served",
            Self::AuthorityDue => "the authority ends soon",
            Self::AuthorityUnusable => "the newest authority cannot sign: its key is missing or it has ended",
        })
    }
}

/// Decides what to do about a Secret that holds `found`, when `remembered` was served before.
///
/// A Secret without its authority's key alone is a wish for a new authority, and is followed with an overlap. One that
/// cannot be served is an accident.
#[must_use]
pub fn decide(found: &Holding, remembered: Option<&Holding>, now: Timestamp) -> Step {
    let vouched = found.vouched(now);
    if vouched.is_none() && remembered.is_some_and(|remembered| remembered.is_usable(now)) {
        return Step::Restore;
    }
    let leaf = match vouched {
        Some(leaf) if leaf.lasts(now, LEAF_MARGIN) => Ok(leaf),
        Some(_) => Err(Why::LeafDue),
        None => Err(Why::LeafUnusable),
    };
    // The newest alone: the keys of older ones were given up.
    let authority = match found.bundle.first() {
        Some(newest) if found.signer == Some(0) && newest.covers(now) => {
            let is_fresh = newest.lasts(now, AUTHORITY_MARGIN);
            is_fresh.then_some(newest).ok_or(Why::AuthorityDue)
        }
        Some(_) => Err(Why::AuthorityUnusable),
        None => Err(Why::Nothing),
    };
    let kept = |room| {
        let living = |place: &usize| found.bundle[*place].until >= now;
        (0..found.bundle.len()).filter(living).take(room).collect()
    };
    match (authority, leaf) {
        (Ok(newest), Ok(leaf)) => Step::Keep {
            until: leaf.ending(LEAF_MARGIN).min(newest.ending(AUTHORITY_MARGIN)),
        },
        (Ok(_), Err(why)) => Step::Make(Making {
            why,
            authority: false,
            kept: kept(MAX_AUTHORITIES),
            leaf: Some(Signer::Present),
        }),
        // Its last signature: what it vouches for outlives the news of its successor by far.
        (Err(Why::AuthorityDue), _) => Step::Make(Making {
            why: Why::AuthorityDue,
            authority: true,
            kept: kept(MAX_AUTHORITIES - 1),
            leaf: Some(Signer::Present),
        }),
        (Err(why), leaf) => Step::Make(Making {
            why,
            authority: true,
            kept: kept(MAX_AUTHORITIES - 1),
            leaf: match leaf {
                Ok(_) => None,
                Err(_) => Some(Signer::New),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 60 * 60;

    fn day(day: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + day * DAY).unwrap()
    }

    fn validity(from: i64, until: i64) -> Validity {
        Validity {
            from: day(from),
            until: day(until),
        }
    }

    fn holding(
        bundle: &[(i64, i64)],
        signer: Option<usize>,
        leaf: Option<(i64, i64, Option<usize>)>,
    ) -> Holding {
        Holding {
            bundle: bundle
                .iter()
                .map(|(from, until)| validity(*from, *until))
                .collect(),
            signer,
            leaf: leaf.map(|(from, until, issuer)| Leaf {
                validity: validity(from, until),
                issuer,
            }),
        }
    }

    fn make(why: Why, authority: bool, kept: &[usize], leaf: Option<Signer>) -> Step {
        Step::Make(Making {
            why,
            authority,
            kept: kept.to_vec(),
            leaf,
        })
    }

    #[track_caller]
    fn check(found: &Holding, now: i64, expected: &Step) {
        assert_eq!(decide(found, None, day(now)), *expected, "{found:?} on day {now}");
    }

    const AUTHORITY: (i64, i64) = (0, 3_650);

    fn whole() -> Holding {
        holding(&[AUTHORITY], Some(0), Some((0, 90, Some(0))))
    }

    #[test]
    fn an_empty_secret_is_filled() {
        check(
            &Holding::default(),
            0,
            &make(Why::Nothing, true, &[], Some(Signer::New)),
        );
    }

    #[test]
    fn a_certificate_is_renewed_two_thirds_through() {
        check(&whole(), 0, &Step::Keep { until: day(60) });
        check(&whole(), 59, &Step::Keep { until: day(60) });
        for now in [60, 89] {
            check(
                &whole(),
                now,
                &make(Why::LeafDue, false, &[0], Some(Signer::Present)),
            );
        }
        check(
            &whole(),
            91,
            &make(Why::LeafUnusable, false, &[0], Some(Signer::Present)),
        );
    }

    #[test]
    fn a_certificate_that_nobody_vouches_for_is_made_anew() {
        for leaf in [
            None,
            Some((0, 90, None)),
            Some((0, 90, Some(7))),
            Some((5, 90, Some(0))),
        ] {
            let found = holding(&[AUTHORITY], Some(0), leaf);
            check(
                &found,
                1,
                &make(Why::LeafUnusable, false, &[0], Some(Signer::Present)),
            );
        }
    }

    #[test]
    fn an_authority_that_ends_signs_once_more_and_is_followed() {
        let due = holding(&[AUTHORITY], Some(0), Some((2_900, 2_990, Some(0))));
        check(&due, 2_919, &Step::Keep { until: day(2_920) });
        check(
            &due,
            2_920,
            &make(Why::AuthorityDue, true, &[0], Some(Signer::Present)),
        );
        // As it is written then; sixty days pass before anybody is shown the new one's signature.
        let overlap = holding(
            &[(2_920, 6_570), AUTHORITY],
            Some(0),
            Some((2_920, 3_010, Some(1))),
        );
        check(&overlap, 2_979, &Step::Keep { until: day(2_980) });
        check(
            &overlap,
            2_980,
            &make(Why::LeafDue, false, &[0, 1], Some(Signer::Present)),
        );
    }

    #[test]
    fn a_lost_key_gives_a_new_authority_beside_the_old_certificate() {
        let unusable = Why::AuthorityUnusable;
        let lost = |signer| holding(&[AUTHORITY], signer, Some((0, 90, Some(0))));
        check(&lost(None), 1, &make(unusable, true, &[0], None));
        check(&lost(Some(1)), 1, &make(unusable, true, &[0], None));
        check(&lost(None), 80, &make(unusable, true, &[0], Some(Signer::New)));
    }

    #[test]
    fn authorities_that_ended_leave_the_bundle_and_few_are_kept() {
        let old = holding(
            &[(0, 5_000), (0, 10), (0, 4_000)],
            Some(0),
            Some((-80, 30, Some(2))),
        );
        check(
            &old,
            20,
            &make(Why::LeafDue, false, &[0, 2], Some(Signer::Present)),
        );
        let many = holding(&[AUTHORITY; 9], None, None);
        check(
            &many,
            1,
            &make(Why::AuthorityUnusable, true, &[0, 1, 2], Some(Signer::New)),
        );
    }

    #[test]
    fn what_somebody_broke_is_written_back_while_it_is_good() {
        let remembered = whole();
        for broken in [
            Holding::default(),
            holding(&[AUTHORITY], Some(0), None),
            holding(&[], None, Some((0, 90, None))),
        ] {
            assert_eq!(decide(&broken, Some(&remembered), day(1)), Step::Restore);
            assert!(
                matches!(decide(&broken, Some(&remembered), day(100)), Step::Make(_)),
                "what was remembered has ended too"
            );
        }
        // Somebody else's that works is taken, and so is the wish for a new authority.
        let other = holding(&[(1, 3_000)], Some(0), Some((1, 91, Some(0))));
        assert!(matches!(
            decide(&other, Some(&remembered), day(1)),
            Step::Keep { .. }
        ));
        let wish = holding(&[AUTHORITY], None, Some((0, 90, Some(0))));
        assert!(matches!(decide(&wish, Some(&remembered), day(1)), Step::Make(_)));
    }

    /// Whatever is found, what is made of it is kept, and the certificate lives long enough for its authority.
    #[test]
    fn every_step_leads_to_something_that_is_kept() {
        let authorities: [&[(i64, i64)]; 5] = [
            &[],
            &[AUTHORITY],
            &[(-3_600, 50)],
            &[(-4_000, -350)],
            &[AUTHORITY, (-3_600, 50)],
        ];
        let leaves = [
            None,
            Some((0, 90, Some(0))),
            Some((-80, 10, Some(0))),
            Some((0, 90, Some(1))),
            Some((0, 90, None)),
        ];
        for bundle in authorities {
            for signer in [None, Some(0), Some(1)] {
                for leaf in leaves {
                    let mut held = holding(bundle, signer, leaf);
                    let mut steps = 0;
                    while let Step::Make(making) = decide(&held, None, day(1)) {
                        held = made(&held, &making, day(1));
                        assert!(held.is_usable(day(1)), "{held:?}");
                        steps += 1;
                        assert!(steps < 4, "{held:?}");
                    }
                }
            }
        }
    }

    /// What carrying it out leaves in the Secret.
    fn made(held: &Holding, making: &Making, now: Timestamp) -> Holding {
        let shift = usize::from(making.authority);
        let place = |old: usize| {
            let found = making.kept.iter().position(|kept| *kept == old);
            found.map(|found| found + shift)
        };
        let fresh = making
            .authority
            .then(|| Validity::beginning(now, AUTHORITY_LIFETIME));
        let kept = making.kept.iter().map(|kept| held.bundle[*kept]);
        Holding {
            bundle: fresh.into_iter().chain(kept).collect(),
            signer: if making.authority {
                Some(0)
            } else {
                held.signer.and_then(place)
            },
            leaf: match making.leaf {
                None => held.leaf.map(|leaf| Leaf {
                    issuer: leaf.issuer.and_then(place),
                    ..leaf
                }),
                Some(signer) => Some(Leaf {
                    validity: Validity::beginning(now, LEAF_LIFETIME),
                    issuer: match signer {
                        Signer::New => Some(0),
                        Signer::Present => held.signer.and_then(place),
                    },
                }),
            },
        }
    }
}
