//! The columns of `pg_catalog` and `information_schema`, as PostgreSQL 15 has them, and what a row has where nothing else is said.
//!
//! One line a table: `name:type` or `name:type=value`. Types: `o` object id, `i` whole number, `f` fraction, `b` truth, `t` text, `l` list of
//! texts, `z` time. Object ids are 64-bit here.

/// A schema, a table of it, its columns.
pub(super) const TABLES: &[(&str, &str, &str)] = &[
    (
        PG,
        "pg_class",
        "oid:o relname:t relnamespace:o=2200 reltype:o=0 reloftype:o=0 relowner:o=10 relam:o=0 relfilenode:o=0 reltablespace:o=0 relpages:i=0 reltuples:f=-1 relallvisible:i=0 reltoastrelid:o=0 relhasindex:b=f relisshared:b=f relpersistence:t=p relkind:t relnatts:i relchecks:i=0 relhasrules:b=f relhastriggers:b=f relhassubclass:b=f relrowsecurity:b=f relforcerowsecurity:b=f relispopulated:b=t relreplident:t=d relispartition:b=f relrewrite:o=0 relfrozenxid:i=0 relminmxid:i=0 relacl:l reloptions:l relpartbound:t",
    ),
    (PG, "pg_namespace", "oid:o nspname:t nspowner:o=10 nspacl:l"),
    (
        PG,
        "pg_attribute",
        "attrelid:o attname:t atttypid:o attstattarget:i=-1 attlen:i attnum:i attndims:i=0 attcacheoff:i=-1 atttypmod:i=-1 attbyval:b=f attalign:t=i attstorage:t=p attcompression:t= attnotnull:b=f atthasdef:b=f atthasmissing:b=f attidentity:t= attgenerated:t= attisdropped:b=f attislocal:b=t attinhcount:i=0 attcollation:o=0 attacl:l attoptions:l attfdwoptions:l attmissingval:t",
    ),
    (
        PG,
        "pg_type",
        "oid:o typname:t typnamespace:o=11 typowner:o=10 typlen:i typbyval:b=f typtype:t=b typcategory:t typispreferred:b=f typisdefined:b=t typdelim:t=, typrelid:o=0 typsubscript:t=- typelem:o=0 typarray:o=0 typinput:t typoutput:t typreceive:t typsend:t typmodin:t=- typmodout:t=- typanalyze:t=- typalign:t=i typstorage:t=p typnotnull:b=f typbasetype:o=0 typtypmod:i=-1 typndims:i=0 typcollation:o=0 typdefaultbin:t typdefault:t typacl:l",
    ),
    (
        PG,
        "pg_database",
        "oid:o datname:t datdba:o=10 encoding:i=6 datlocprovider:t=c datistemplate:b=f datallowconn:b=t datconnlimit:i=-1 datfrozenxid:i=0 datminmxid:i=0 dattablespace:o=1663 datcollate:t=C.UTF-8 datctype:t=C.UTF-8 daticulocale:t datcollversion:t datacl:l",
    ),
    (
        PG,
        "pg_roles",
        "rolname:t rolsuper:b=f rolinherit:b=t rolcreaterole:b=f rolcreatedb:b=f rolcanlogin:b=t rolreplication:b=f rolconnlimit:i=-1 rolpassword:t=******** rolvaliduntil:z rolbypassrls:b=f rolconfig:l oid:o",
    ),
    (
        PG,
        "pg_user",
        "usename:t usesysid:o usecreatedb:b=f usesuper:b=f userepl:b=f usebypassrls:b=f passwd:t=******** valuntil:z useconfig:l",
    ),
    (
        PG,
        "pg_settings",
        "name:t setting:t unit:t category:t=Weir short_desc:t= extra_desc:t context:t=user vartype:t=string source:t=default min_val:t max_val:t enumvals:l boot_val:t reset_val:t sourcefile:t sourceline:i pending_restart:b=f",
    ),
    (
        PG,
        "pg_index",
        "indexrelid:o indrelid:o indnatts:i indnkeyatts:i indisunique:b=t indnullsnotdistinct:b=f indisprimary:b=t indisexclusion:b=f indimmediate:b=t indisclustered:b=f indisvalid:b=t indcheckxmin:b=f indisready:b=t indislive:b=t indisreplident:b=f indkey:t indcollation:t indclass:t indoption:t indexprs:t indpred:t",
    ),
    (
        PG,
        "pg_constraint",
        "oid:o conname:t connamespace:o=2200 contype:t condeferrable:b=f condeferred:b=f convalidated:b=t conrelid:o contypid:o=0 conindid:o=0 conparentid:o=0 confrelid:o=0 confupdtype:t= confdeltype:t= confmatchtype:t= conislocal:b=t coninhcount:i=0 connoinherit:b=t conkey:l confkey:l conpfeqop:l conppeqop:l conffeqop:l confdelsetcols:l conexclop:l conbin:t",
    ),
    (PG, "pg_am", "oid:o amname:t amhandler:t amtype:t"),
    (PG, "pg_get_keywords", "word:t catcode:t catdesc:t barelabel:b=t baredesc:t"),
    (
        PG,
        "pg_tables",
        "schemaname:t=public tablename:t tableowner:t=weir tablespace:t hasindexes:b=f hasrules:b=f hastriggers:b=f rowsecurity:b=f",
    ),
    (PG, "pg_views", "schemaname:t=public viewname:t viewowner:t=weir definition:t"),
    (
        PG,
        "pg_matviews",
        "schemaname:t=public matviewname:t matviewowner:t=weir tablespace:t hasindexes:b=f ispopulated:b=t definition:t",
    ),
    (PG, "pg_tablespace", "oid:o spcname:t spcowner:o=10 spcacl:l spcoptions:l"),
    // Nothing of these exists here.
    (
        PG,
        "pg_proc",
        "oid:o proname:t pronamespace:o proowner:o prolang:o procost:f prorows:f provariadic:o prosupport:t prokind:t prosecdef:b proleakproof:b proisstrict:b proretset:b provolatile:t proparallel:t pronargs:i pronargdefaults:i prorettype:o proargtypes:t proallargtypes:l proargmodes:l proargnames:l proargdefaults:t protrftypes:l prosrc:t probin:t prosqlbody:t proconfig:l proacl:l",
    ),
    (PG, "pg_attrdef", "oid:o adrelid:o adnum:i adbin:t"),
    (PG, "pg_auth_members", "roleid:o member:o grantor:o admin_option:b"),
    (PG, "pg_cast", "oid:o castsource:o casttarget:o castfunc:o castcontext:t castmethod:t"),
    (
        PG,
        "pg_collation",
        "oid:o collname:t collnamespace:o collowner:o collprovider:t collisdeterministic:b collencoding:i collcollate:t collctype:t colliculocale:t collversion:t",
    ),
    (PG, "pg_depend", "classid:o objid:o objsubid:i refclassid:o refobjid:o refobjsubid:i deptype:t"),
    (PG, "pg_description", "objoid:o classoid:o objsubid:i description:t"),
    (PG, "pg_shdescription", "objoid:o classoid:o description:t"),
    (PG, "pg_enum", "oid:o enumtypid:o enumsortorder:f enumlabel:t"),
    (PG, "pg_event_trigger", "oid:o evtname:t evtevent:t evtowner:o evtfoid:o evtenabled:t evttags:l"),
    (PG, "pg_extension", "oid:o extname:t extowner:o extnamespace:o extrelocatable:b extversion:t extconfig:l extcondition:l"),
    (PG, "pg_foreign_data_wrapper", "oid:o fdwname:t fdwowner:o fdwhandler:o fdwvalidator:o fdwacl:l fdwoptions:l"),
    (PG, "pg_foreign_server", "oid:o srvname:t srvowner:o srvfdw:o srvtype:t srvversion:t srvacl:l srvoptions:l"),
    (PG, "pg_foreign_table", "ftrelid:o ftserver:o ftoptions:l"),
    (PG, "pg_inherits", "inhrelid:o inhparent:o inhseqno:i inhdetachpending:b"),
    (
        PG,
        "pg_language",
        "oid:o lanname:t lanowner:o lanispl:b lanpltrusted:b lanplcallfoid:o laninline:o lanvalidator:o lanacl:l",
    ),
    (PG, "pg_locks", "locktype:t database:o relation:o pid:i mode:t granted:b transactionid:t virtualtransaction:t"),
    (PG, "pg_operator", "oid:o oprname:t oprnamespace:o oprowner:o oprkind:t oprleft:o oprright:o oprresult:o oprcode:t"),
    (PG, "pg_aggregate", "aggfnoid:o aggkind:t aggtransfn:t aggfinalfn:t aggtranstype:o"),
    (PG, "pg_partitioned_table", "partrelid:o partstrat:t partnatts:i partdefid:o partattrs:t"),
    (PG, "pg_policy", "oid:o polname:t polrelid:o polcmd:t polpermissive:b polroles:l polqual:t polwithcheck:t"),
    (
        PG,
        "pg_publication",
        "oid:o pubname:t pubowner:o puballtables:b pubinsert:b pubupdate:b pubdelete:b pubtruncate:b pubviaroot:b",
    ),
    (PG, "pg_publication_namespace", "oid:o pnpubid:o pnnspid:o"),
    (PG, "pg_publication_rel", "oid:o prpubid:o prrelid:o prqual:t prattrs:t"),
    (PG, "pg_publication_tables", "pubname:t schemaname:t tablename:t"),
    (PG, "pg_subscription", "oid:o subdbid:o subname:t subowner:o subenabled:b"),
    (PG, "pg_range", "rngtypid:o rngsubtype:o rngmultitypid:o rngcollation:o rngsubopc:o rngcanonical:o rngsubdiff:o"),
    (PG, "pg_rewrite", "oid:o rulename:t ev_class:o ev_type:t ev_enabled:t is_instead:b ev_qual:t ev_action:t"),
    (PG, "pg_sequence", "seqrelid:o seqtypid:o seqstart:i seqincrement:i seqmax:i seqmin:i seqcache:i seqcycle:b"),
    (
        PG,
        "pg_stat_activity",
        "datid:o datname:t pid:i usesysid:o usename:t application_name:t client_addr:t backend_start:z xact_start:z query_start:z state_change:z wait_event_type:t wait_event:t state:t query:t backend_type:t",
    ),
    (PG, "pg_stat_user_tables", "relid:o schemaname:t relname:t seq_scan:i n_live_tup:i n_dead_tup:i"),
    (PG, "pg_stat_all_tables", "relid:o schemaname:t relname:t seq_scan:i n_live_tup:i n_dead_tup:i"),
    (
        PG,
        "pg_statistic_ext",
        "oid:o stxrelid:o stxname:t stxnamespace:o stxowner:o stxstattarget:i stxkeys:t stxkind:l stxexprs:t",
    ),
    (
        PG,
        "pg_trigger",
        "oid:o tgrelid:o tgparentid:o tgname:t tgfoid:o tgtype:i tgenabled:t tgisinternal:b tgconstrrelid:o tgconstrindid:o tgconstraint:o tgdeferrable:b tginitdeferred:b tgnargs:i tgattr:t tgargs:t tgqual:t tgoldtable:t tgnewtable:t",
    ),
    (PG, "pg_indexes", "schemaname:t tablename:t indexname:t tablespace:t indexdef:t"),
    (
        INFORMATION,
        "schemata",
        "catalog_name:t=weir schema_name:t schema_owner:t=weir default_character_set_catalog:t default_character_set_schema:t default_character_set_name:t sql_path:t",
    ),
    (
        INFORMATION,
        "tables",
        "table_catalog:t=weir table_schema:t table_name:t table_type:t self_referencing_column_name:t reference_generation:t user_defined_type_catalog:t user_defined_type_schema:t user_defined_type_name:t is_insertable_into:t is_typed:t=NO commit_action:t",
    ),
    (
        INFORMATION,
        "columns",
        "table_catalog:t=weir table_schema:t table_name:t column_name:t ordinal_position:i column_default:t is_nullable:t data_type:t character_maximum_length:i character_octet_length:i numeric_precision:i numeric_precision_radix:i numeric_scale:i datetime_precision:i interval_type:t interval_precision:i character_set_catalog:t character_set_schema:t character_set_name:t collation_catalog:t collation_schema:t collation_name:t domain_catalog:t domain_schema:t domain_name:t udt_catalog:t=weir udt_schema:t=pg_catalog udt_name:t scope_catalog:t scope_schema:t scope_name:t maximum_cardinality:i dtd_identifier:t is_self_referencing:t=NO is_identity:t=NO identity_generation:t identity_start:t identity_increment:t identity_maximum:t identity_minimum:t identity_cycle:t=NO is_generated:t=NEVER generation_expression:t is_updatable:t",
    ),
    (
        INFORMATION,
        "views",
        "table_catalog:t=weir table_schema:t=public table_name:t view_definition:t check_option:t=NONE is_updatable:t=NO is_insertable_into:t=NO is_trigger_updatable:t=NO is_trigger_deletable:t=NO is_trigger_insertable_into:t=NO",
    ),
    (
        INFORMATION,
        "table_constraints",
        "constraint_catalog:t=weir constraint_schema:t=public constraint_name:t table_catalog:t=weir table_schema:t=public table_name:t constraint_type:t is_deferrable:t=NO initially_deferred:t=NO enforced:t=YES nulls_distinct:t",
    ),
    (
        INFORMATION,
        "key_column_usage",
        "constraint_catalog:t=weir constraint_schema:t=public constraint_name:t table_catalog:t=weir table_schema:t=public table_name:t column_name:t ordinal_position:i position_in_unique_constraint:i",
    ),
    (
        INFORMATION,
        "referential_constraints",
        "constraint_catalog:t constraint_schema:t constraint_name:t unique_constraint_catalog:t unique_constraint_schema:t unique_constraint_name:t match_option:t update_rule:t delete_rule:t",
    ),
    (
        INFORMATION,
        "constraint_column_usage",
        "table_catalog:t table_schema:t table_name:t column_name:t constraint_catalog:t constraint_schema:t constraint_name:t",
    ),
    (
        INFORMATION,
        "routines",
        "specific_catalog:t specific_schema:t specific_name:t routine_catalog:t routine_schema:t routine_name:t routine_type:t data_type:t routine_definition:t",
    ),
    (
        INFORMATION,
        "parameters",
        "specific_catalog:t specific_schema:t specific_name:t ordinal_position:i parameter_mode:t parameter_name:t data_type:t",
    ),
    (INFORMATION, "sequences", "sequence_catalog:t sequence_schema:t sequence_name:t data_type:t"),
    (
        INFORMATION,
        "triggers",
        "trigger_catalog:t trigger_schema:t trigger_name:t event_manipulation:t event_object_schema:t event_object_table:t",
    ),
    (
        INFORMATION,
        "table_privileges",
        "grantor:t grantee:t table_catalog:t table_schema:t table_name:t privilege_type:t is_grantable:t with_hierarchy:t",
    ),
    (
        INFORMATION,
        "role_table_grants",
        "grantor:t grantee:t table_catalog:t table_schema:t table_name:t privilege_type:t is_grantable:t with_hierarchy:t",
    ),
    (INFORMATION, "character_sets", "character_set_catalog:t character_set_schema:t character_set_name:t"),
    (INFORMATION, "collations", "collation_catalog:t collation_schema:t collation_name:t"),
];

/// Types: object id, name, name in SQL, bytes (-1: of any length), category, array of it.
pub(super) const TYPES: &[(i64, &str, &str, i64, &str, i64)] = &[
    (16, "bool", "boolean", 1, "B", 1000),
    (17, "bytea", "bytea", -1, "U", 1001),
    (18, "char", "\"char\"", 1, "Z", 1002),
    (19, "name", "name", 64, "S", 1003),
    (20, "int8", "bigint", 8, "N", 1016),
    (21, "int2", "smallint", 2, "N", 1005),
    (23, "int4", "integer", 4, "N", 1007),
    (25, "text", "text", -1, "S", 1009),
    (26, "oid", "oid", 4, "N", 1028),
    (114, "json", "json", -1, "U", 199),
    (700, "float4", "real", 4, "N", 1021),
    (701, "float8", "double precision", 8, "N", 1022),
    (705, "unknown", "unknown", -2, "X", 0),
    (869, "inet", "inet", -1, "I", 1041),
    (650, "cidr", "cidr", -1, "I", 651),
    (1042, "bpchar", "character", -1, "S", 1014),
    (1043, "varchar", "character varying", -1, "S", 1015),
    (1082, "date", "date", 4, "D", 1182),
    (1083, "time", "time without time zone", 8, "D", 1183),
    (1114, "timestamp", "timestamp without time zone", 8, "D", 1115),
    (1184, "timestamptz", "timestamp with time zone", 8, "D", 1185),
    (1186, "interval", "interval", 16, "T", 1187),
    (1700, "numeric", "numeric", -1, "N", 1231),
    (2950, "uuid", "uuid", 16, "U", 2951),
    (3802, "jsonb", "jsonb", -1, "U", 3807),
];

/// Words that cannot be names.
pub(super) const KEYWORDS: &str = "all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create \
    current_catalog current_date current_role current_time current_timestamp current_user default deferrable desc distinct do else end except \
    false fetch for foreign from grant group having in initially intersect into lateral leading limit localtime localtimestamp not null offset \
    on only or order placing primary references returning select session_user some symmetric table then to trailing true union unique user \
    using variadic when where window with";

/// PostgreSQL's own catalog.
pub(crate) const PG: &str = "pg_catalog";
/// The standard's.
pub(crate) const INFORMATION: &str = "information_schema";
