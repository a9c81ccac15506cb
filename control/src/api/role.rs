//! Who may do what: the role of a caller follows from the credentials of its end of the Unix socket.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// What a caller may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Run instances and programs in them.
    Operator,
    /// Change policy, stop the daemon.
    Admin,
}

impl Role {
    /// The role of a caller with these credentials: root and the daemon's own user are administrators, members of the
    /// operators' group are operators, everyone else may look.
    pub fn of(uid: u32, gids: &[u32], daemon_uid: u32, operators_gid: Option<u32>) -> Self {
        if uid == 0 || uid == daemon_uid {
            Self::Admin
        } else if operators_gid.is_some_and(|gid| gids.contains(&gid)) {
            Self::Operator
        } else {
            Self::Viewer
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_from_credentials() {
        for (uid, gids, role) in [
            (0, &[0][..], Role::Admin),
            (1000, &[1000], Role::Admin),
            (1001, &[1001, 77], Role::Operator),
            (1001, &[1001], Role::Viewer),
        ] {
            assert_eq!(Role::of(uid, gids, 1000, Some(77)), role);
        }
        assert_eq!(Role::of(1001, &[77], 1000, None), Role::Viewer);
    }

    #[test]
    fn each_role_includes_the_lesser_ones() {
        assert!(Role::Admin > Role::Operator && Role::Operator > Role::Viewer);
    }
}
