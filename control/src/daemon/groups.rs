//! Who is in which group, from `/etc/passwd` and `/etc/group`.
//!
//! Read as files, not through the C library: its name services are loaded at run time, which a statically linked
//! daemon cannot do (it crashes trying). Users and groups that exist only in a directory service are not seen.

use std::fs;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// All groups of a user: the credentials of a socket carry only the first, `gid`.
pub(crate) fn groups_of(uid: u32, gid: u32) -> Vec<u32> {
    let passwd = fs::read_to_string(PASSWD).unwrap_or_default();
    let group = fs::read_to_string(GROUP).unwrap_or_default();
    let mut groups = vec![gid];
    if let Some(name) = user_name(&passwd, uid) {
        groups.extend(groups_with_member(&group, name));
    }
    groups
}

/// The number of the group called `name`, if there is one.
pub(crate) fn gid_of(name: &str) -> Option<u32> {
    group_id(&fs::read_to_string(GROUP).ok()?, name)
}

/// group(5): `name:password:GID:members`.
fn group_id(group: &str, name: &str) -> Option<u32> {
    group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// passwd(5): `name:password:UID:GID:…`.
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

fn groups_with_member<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD_FILE: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbroken\n";
    const GROUP_FILE: &str = "root:x:0:\ntombolo:x:990:bob,ann\naudio:x:29:anna\nbroken:x\nodd:x:many:ann\n";

    #[test]
    fn group_is_found_by_its_whole_name() {
        assert_eq!(group_id(GROUP_FILE, "tombolo"), Some(990));
        assert_eq!(group_id(GROUP_FILE, "tombol"), None);
        assert_eq!(group_id(GROUP_FILE, "odd"), None);
    }

    #[test]
    fn user_belongs_to_the_groups_that_list_its_whole_name() {
        let name = user_name(PASSWD_FILE, 1000).unwrap();
        assert_eq!(groups_with_member(GROUP_FILE, name).collect::<Vec<_>>(), [990]);
    }

    #[test]
    fn unknown_user_has_no_name() {
        assert_eq!(user_name(PASSWD_FILE, 1001), None);
    }
}
