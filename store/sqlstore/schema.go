package sqlstore

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
)

// schemaVersion is that of the tables this release makes and reads. A release that changes them raises it, and its
// Migrate changes what is there; a release before it refuses what it does not know.
const schemaVersion = 1

// Schema returns the statements that make the tables, to be run by somebody who may, and the rights that the store's
// own user needs.
func Schema(d Dialect, table, user string) string {
	var b strings.Builder
	for _, statement := range d.schema(table) {
		b.WriteString(statement)
		b.WriteString(";\n")
	}
	if d.Grants != "" {
		b.WriteString("\n-- What the user of the application needs:\n")
		for line := range strings.Lines(d.grants(table, user)) {
			b.WriteString("-- " + strings.TrimSuffix(line, "\n") + ";\n")
		}
	}
	return b.String()
}

func (d *Dialect) schema(table string) []string {
	var statements []string
	for _, text := range d.Schema {
		statements = append(statements, d.compile(text, table).sql)
	}
	return statements
}

func (d *Dialect) grants(table, user string) string {
	return strings.NewReplacer("{table}", table, "{meta}", metaTable(table), "{user}", QuoteName(user, d.Quote)).Replace(d.Grants)
}

// QuoteName returns the name of a user or a database as a person would write it in a statement.
func QuoteName(name, quote string) string {
	if plainName.MatchString(name) {
		return name
	}
	return quote + strings.ReplaceAll(name, quote, quote+quote) + quote
}

var plainName = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)

// Migrate makes what is missing of the tables, and checks them. It can be run at any time, also while the store is used.
func Migrate(ctx context.Context, d Dialect, connector sqldriver.Connector, c Config) error {
	s := newStore(d, connector, c)
	defer s.Close()
	return s.call(ctx, func(ctx context.Context) error {
		if err := s.migrate(ctx); err != nil {
			return err
		}
		return s.check(ctx)
	})
}

func (s *Store) migrate(ctx context.Context) error {
	for _, statement := range s.dialect.schema(s.config.Table) {
		if _, err := s.db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// start connects, makes or checks the tables, tries the user's rights, and fills in s.description.
func (s *Store) start(ctx context.Context) error {
	return s.run(ctx, true, func(ctx context.Context) error {
		err := s.check(ctx)
		if err != nil && !errors.As(err, new(refusal)) {
			if v := s.dialect.Classify(err); v == Refused || v == Denied {
				return refuse("%s", s.explain(err))
			}
		}
		if errors.Is(err, errMissing) {
			if made := s.migrate(ctx); made != nil {
				// Another process may have made them meanwhile.
				if err = s.check(ctx); errors.Is(err, errMissing) {
					return s.cannotMake(err, made)
				}
			} else {
				err = s.check(ctx)
			}
		}
		if err != nil {
			return err
		}
		if err := s.tryRights(ctx); err != nil {
			return err
		}
		if s.dialect.Opened != nil {
			if err := s.dialect.Opened(ctx, s.db, s.config.Table, &s.description); err != nil {
				return err
			}
		}
		return s.prepareAll(ctx)
	})
}

// refusal is an error of Open that asking again does not change. It is not driver.ErrUnavailable.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

func refuse(format string, a ...any) error { return refusal{fmt.Errorf(format, a...)} }

// Refuse returns an error for Dialect.Opened that says what is wrong with the table or the URL.
func Refuse(format string, a ...any) error { return refuse(format, a...) }

// errMissing says that a table is not there.
var errMissing = errors.New("the table does not exist")

func (s *Store) cannotMake(missing, made error) error {
	if v := s.dialect.Classify(made); v != Denied && v != ReadOnly {
		return made
	}
	return refuse("%w, and it cannot be made (%s); run this as a user who may:\n  holdfast store migrate '%s'\nor have somebody run what this prints:\n  holdfast store migrate --print '%s'",
		missing, s.explain(made), s.config.URL, s.config.URL)
}

// check returns errMissing if a table is not there, and a refusal if it is not what it should be.
func (s *Store) check(ctx context.Context) error {
	if err := s.checkColumns(ctx, s.config.Table, s.dialect.Types); err != nil {
		return err
	}
	var version int64
	err := s.db.QueryRowContext(ctx, s.dialect.compile("SELECT value FROM {meta} WHERE name = 'schema'", s.config.Table).sql).Scan(&version)
	switch {
	case err != nil && (errors.Is(err, sql.ErrNoRows) || s.dialect.Classify(err) == NoTable):
		return fmt.Errorf("table %s: %w", metaTable(s.config.Table), errMissing)
	case err != nil && s.dialect.Classify(err) == Denied:
		return s.denied(err)
	case err != nil:
		return err
	case version > schemaVersion:
		return refusal{fmt.Errorf("%w: table %s has schema version %d, this release knows %d; install the newer release", driver.ErrVersion, s.config.Table, version, schemaVersion)}
	}
	return nil
}

func (s *Store) checkColumns(ctx context.Context, table string, types map[string][]string) error {
	st := s.dialect.compile(s.dialect.Columns, table)
	rows, err := s.db.QueryContext(ctx, st.sql, st.values(&args{argName: table})...)
	if err != nil {
		return err
	}
	defer rows.Close()
	missing := maps.Clone(types)
	found := false
	wrong := func(format string, a ...any) error {
		return refuse("table %s is not one of Holdfast's: %s; give another name with table=", table, fmt.Sprintf(format, a...))
	}
	for rows.Next() {
		found = true
		var name, kind string
		var key, required bool
		if err := rows.Scan(&name, &kind, &key, &required); err != nil {
			return err
		}
		want, known := types[name]
		delete(missing, name)
		switch {
		case !known && required:
			return wrong("column %s is not known and must not be empty", name)
		case !known: // a later release may have added it
		case !slices.ContainsFunc(want, func(w string) bool {
			return strings.EqualFold(kind, w) || strings.HasSuffix(w, "(") && strings.HasPrefix(strings.ToLower(kind), w)
		}):
			return wrong("column %s is %s, want %s", name, kind, want[0])
		case key != (name == "id"):
			return wrong("its primary key is not the column id alone")
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("table %s: %w", table, errMissing)
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		return wrong("it has no column %s", name)
	}
	return nil
}

// tryRights runs what requests run, in a way that changes nothing, so that a missing right is found now.
func (s *Store) tryRights(ctx context.Context) error {
	for _, text := range []string{
		"SELECT revision, seen, expires, sweep, data FROM {table} WHERE 1 = 0",
		"INSERT INTO {table} (id, revision, seen, expires, sweep, data) SELECT id, revision, seen, expires, sweep, data FROM {table} WHERE 1 = 0",
		"UPDATE {table} SET revision = revision, seen = seen, expires = expires, sweep = sweep, data = data WHERE 1 = 0",
		"DELETE FROM {table} WHERE 1 = 0",
		"UPDATE {meta} SET owner = owner, until = until WHERE 1 = 0",
	} {
		_, err := s.db.ExecContext(ctx, s.dialect.compile(text, s.config.Table).sql)
		switch {
		case err == nil:
		case s.dialect.Classify(err) == Denied:
			return s.denied(err)
		case s.dialect.Classify(err) == ReadOnly && s.readOnlyAllowed(): // reads work
		default:
			return err
		}
	}
	return nil
}

// readOnlyAllowed says that there is no other host to look for.
func (s *Store) readOnlyAllowed() bool { return s.hosts == nil || s.hosts.Len() == 1 }

func (s *Store) denied(err error) error {
	if s.dialect.Grants == "" {
		return refuse("%s", s.explain(err))
	}
	return refuse("user %q may not do what the store needs (%s); have somebody run\n  %s", s.config.User, s.explain(err),
		strings.ReplaceAll(s.dialect.grants(s.config.Table, s.config.User), "\n", "\n  "))
}

// Drop removes the tables with everything in them, for tables that were made to try a database. The store is of no use
// afterwards, except to be closed.
func (s *Store) Drop(ctx context.Context) error {
	s.stopSweeping()
	return s.call(ctx, func(ctx context.Context) error {
		for _, table := range []string{s.config.Table, metaTable(s.config.Table)} {
			if _, err := s.db.ExecContext(ctx, "DROP TABLE IF EXISTS "+table); err != nil {
				return err
			}
		}
		return nil
	})
}
