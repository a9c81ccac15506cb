//! What the macro says, and where, about traits that are no services. `TRYBUILD=overwrite` writes what it says now.

#[test]
fn traits_that_are_no_services_are_refused_where_they_are_wrong() {
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}
