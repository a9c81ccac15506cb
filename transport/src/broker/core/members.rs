//! Who is in the pool, and who may call whom.

use super::BrokerCore;
use crate::addr::{Cid, Port};
use crate::broker::policy::KernelId;
use crate::broker::protocol::Failure;
use crate::pool::Member;

/// A member as the shell last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberInfo {
    pub(crate) cid: Cid,
    pub(crate) name: String,
    /// 0: no broker of it is alive.
    pub(crate) generation: u64,
}

impl BrokerCore {
    /// A member came, went, restarted, or was fenced. `None`: it is not in the pool's table (any more).
    pub(crate) fn handle_member_change(&mut self, member: Member, info: Option<MemberInfo>) {
        let generation = |info: &Option<MemberInfo>| info.as_ref().map_or(0, |info| info.generation);
        let (old, new) = (generation(&self.members[member.index()]), generation(&info));
        self.members[member.index()] = info;
        if old != 0 && old != new {
            self.lose_peer(member, old);
            let failure =
                Failure::NotFound { reason: "its kernel died, or it or its broker restarted".into() };
            self.end_questions(|question| question.peer == member, &failure);
            self.run_loopback();
        }
    }

    pub(crate) fn member(&self, member: Member) -> Option<&MemberInfo> {
        self.members[member.index()].as_ref()
    }

    pub(super) fn find_kernel(&self, cid: Cid) -> Result<(Member, u64), Failure> {
        if cid == Cid::LOCAL || cid == self.own_cid() {
            return Ok((self.member, self.generation));
        }
        let found = self.member_with(cid);
        match found.and_then(|member| Some((member, self.member(member)?.generation))) {
            None => Err(Failure::Refused { reason: format!("no kernel of cid {cid} is in the pool") }),
            Some((_, 0)) => Err(Failure::Refused { reason: "its kernel is not up".into() }),
            Some(found) => Ok(found),
        }
    }

    /// The member that has this CID, as far as is known.
    pub(crate) fn member_with(&self, cid: Cid) -> Option<Member> {
        let index = self.members.iter().position(|info| info.as_ref().is_some_and(|info| info.cid == cid))?;
        Some(Member(index as u16))
    }

    pub(super) fn find_kernel_by_name(&self, name: &str) -> Option<Member> {
        let cid = name.parse().ok().map(Cid);
        self.members
            .iter()
            .position(|info| info.as_ref().is_some_and(|info| info.name == name || Some(info.cid) == cid))
            .map(|index| Member(index as u16))
    }

    pub(super) fn is_allowed(&self, peer: Member, port: Port, service: Option<&str>) -> bool {
        match (self.kernel_id(peer), self.kernel_id(self.member)) {
            (Some(from), Some(to)) => self.policy.allows(from, to, port, service),
            _ => false,
        }
    }

    pub(super) fn kernel_id(&self, member: Member) -> Option<KernelId<'_>> {
        let info = self.members[member.index()].as_ref()?;
        Some(KernelId { cid: info.cid, name: &info.name, primary: member == Member::PRIMARY })
    }
}
