//! Users and their groups, from `/etc/passwd` and `/etc/group`.
//!
//! Read as files, not through the C library: its name services are loaded at run time, which a statically linked program
//! cannot do. Users and groups that exist only in a directory service are not seen.

use std::path::PathBuf;

use super::command::invalid;
use crate::api::exec::ExecError;

/// A user and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserIds {
    /// User id.
    pub uid: u32,
    /// Main group.
    pub gid: u32,
    /// Further groups: those that list the user's name.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
}

/// A name of /etc/passwd, `UID`, or `UID:GID`, which has no further groups.
pub(super) fn resolve_user(user: &str) -> Result<UserIds, ExecError> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    resolve_user_in(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve_user_in(user: &str, passwd: &str, group: &str) -> Result<UserIds, ExecError> {
    // A name comes before a number that somebody has as a name.
    for field in [Field::Name, Field::Uid] {
        if let Some(ids) = passwd.lines().find_map(|line| passwd_entry(line, field, user, group)) {
            return Ok(ids);
        }
    }
    let (uid, gid) = user.split_once(':').unwrap_or((user, user));
    match (parse_id(uid), parse_id(gid)) {
        (Some(uid), Some(gid)) => Ok(UserIds { uid, gid, groups: Vec::new(), home: PathBuf::from("/") }),
        _ => Err(invalid("user", format!("`{user}` is neither in /etc/passwd nor a UID or UID:GID"))),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Uid,
}

/// passwd(5): `name:password:UID:GID:comment:home:shell`.
fn passwd_entry(line: &str, by: Field, wanted: &str, group: &str) -> Option<UserIds> {
    let mut fields = line.split(':');
    let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
    let field = if by == Field::Name { name } else { uid };
    if field != wanted {
        return None;
    }
    let (uid, gid) = (parse_id(uid)?, parse_id(gid)?);
    let groups = groups_of(name, group).filter(|other| *other != gid).collect();
    Some(UserIds { uid, gid, groups, home: PathBuf::from(home) })
}

/// group(5): `name:password:GID:members`.
fn groups_of<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = parse_id(fields.next()?)?;
        fields.next()?.split(',').any(|member| member.trim() == user).then_some(gid)
    })
}

/// The largest number means "unchanged" to the system calls, so nobody has it.
fn parse_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n1000:x:7:7::/seven:\napp:x:1000:1001::/home/app:/bin/sh\n\
        broken:x:many:1::/:\nhomeless:x:8:8:::\n";
    const GROUP: &str =
        "root:x:0:\napp:x:1001:app\naudio:x:29:app,apple\nvideo:x:44:apple, app\nodd:x:many:app\nshort:x\n";

    fn ids(user: &str) -> Option<(u32, u32, Vec<u32>, String)> {
        let ids = resolve_user_in(user, PASSWD, GROUP).ok()?;
        Some((ids.uid, ids.gid, ids.groups, ids.home.display().to_string()))
    }

    #[test]
    fn a_user_of_passwd_has_the_groups_that_list_its_whole_name() {
        assert_eq!(ids("app"), Some((1000, 1001, vec![29, 44], "/home/app".into())));
        assert_eq!(ids("0"), Some((0, 0, vec![], "/root".into())));
        assert_eq!(ids("homeless"), Some((8, 8, vec![], "/".into())));
    }

    #[test]
    fn a_name_comes_before_a_number() {
        assert_eq!(ids("1000").map(|ids| ids.0), Some(7));
    }

    #[test]
    fn numbers_that_passwd_does_not_know_have_no_further_groups() {
        assert_eq!(ids("77:8"), Some((77, 8, vec![], "/".into())));
        assert_eq!(ids("77"), Some((77, 77, vec![], "/".into())));
    }

    #[test]
    fn who_cannot_be_meant_is_refused() {
        for user in ["nobody-here", "broken", "4294967295", "1:4294967295", "1:x", "", ":"] {
            assert!(resolve_user_in(user, PASSWD, GROUP).is_err(), "{user}");
        }
    }
}
