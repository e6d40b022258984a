package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Dialect is what one kind of database has of its own. In its statements, {table} and {meta} are the two tables and
// any other word in braces is an argument; see argNames.
type Dialect struct {
	// Name is the kind of store: "mysql".
	Name string
	// Placeholder returns how argument number n, from 1, is written. Where Repeats is set, an argument that occurs
	// twice is sent twice, because placeholders have no numbers.
	Placeholder func(n int) string
	Repeats     bool
	// Prepare says that statements are prepared by package database/sql, once a connection.
	Prepare bool
	// OneWriter says that the database takes one writer at a time; they queue in the process, where the wait is fair
	// and heeds deadlines.
	OneWriter bool
	// Blocks says that a call may go on when its context has ended: a file system that hangs cannot be interrupted. The
	// store's methods return all the same.
	Blocks bool

	// Insert stores a row, also over one that has expired. It affects none if another is there.
	Insert string
	// Touch is an update of the row with revision {prev} that has not expired. Touched says what became of it; if it
	// is nil, the number of rows affected does, and a second statement tells a lost race from an absent row.
	Touch   string
	Touched func(sql.Result) (Touched, error)
	// Sweep removes up to {limit} rows whose sweep is at most {sweep} and whose expires is at most {now}. SweepBatch
	// does so with statements of its own, and reports whether there may be more.
	Sweep      string
	SweepBatch func(ctx context.Context, db *sql.DB, table string, sweep, now int64, limit int) (removed int, more bool, err error)
	// Clock is an expression: milliseconds since 1970 by the database's clock, which decides who sweeps.
	Clock string
	// Size returns the bytes that {table} takes.
	Size string
	// SizeNote says how exact that is.
	SizeNote string

	// Schema are the statements that make what is missing of the two tables. They can be run again.
	Schema []string
	// Grants are what the user of a store needs, as a person would grant it; {user} is the user. Quote goes around names
	// that need it.
	Grants string
	Quote  string
	// Columns lists the columns of a table, {name}: name, type, whether it is the whole primary key, whether an insert
	// has to give it a value. It returns no rows if there is no such table.
	Columns string
	// Types are the types that Columns may say of each column of {table}. A type that ends in ( stands for those that
	// begin so.
	Types map[string][]string
	// Opened completes the description of a store when its table has been found or made. It may be nil.
	Opened func(ctx context.Context, db *sql.DB, table string, d *driver.Description) error
	// Classify says what an error of the database means. Explain says it to people; it may return "".
	Classify func(error) Verdict
	Explain  func(error) string
}

// Touched is what became of a touch.
type Touched int

// What becomes of a touch.
const (
	TouchAbsent Touched = iota // no row, or an expired one
	TouchDone
	TouchLost // another revision
)

// Verdict is what an error of the database means for the store.
type Verdict int

// What an error means.
const (
	// Unavailable is any error that is none of the others. A write may or may not have happened.
	Unavailable Verdict = iota
	// Broken says that the connection broke, or was lost in the middle. A read is sent again.
	Broken
	// Again says that the database undid the statement in favour of another one (a deadlock, a lock that was not had in
	// time, a Galera node that lost the certification). It is repeated: it looks at the revision anew then.
	Again
	// ReadOnly says that this server refuses writes.
	ReadOnly
	// Elsewhere says that this server takes no statement at present. Nothing was done.
	Elsewhere
	// TooLarge says that the row is larger than the database takes.
	TooLarge
	// Refused says that the server does not let the user in, or not into this database. Open does not call it unavailable.
	Refused
	// Denied says that the user has not the rights.
	Denied
	// NoTable says that there is no such table.
	NoTable
)

// args are the arguments of a statement, by their place in argNames.
type args [len(argNames)]any

const (
	argID = iota
	argRevision
	argSeen
	argExpires
	argSweep
	argData
	argPrev
	argNow
	argLimit
	argOwner
	argLife
	argName
)

var argNames = [...]string{"id", "revision", "seen", "expires", "sweep", "data", "prev", "now", "limit", "owner", "life", "name"}

// statement is one that was compiled for a dialect and a table.
type statement struct {
	sql     string
	args    []int // the places in args, in the order to send them in
	prepare bool  // by database/sql
	stmt    atomic.Pointer[sql.Stmt]
}

// compile replaces what is in braces.
func (d *Dialect) compile(text, table string) *statement {
	s := &statement{}
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(text, "{")
		out.WriteString(before)
		if !ok {
			break
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			panic("sqlstore: } is missing in " + text)
		}
		text = after
		switch name {
		case "table":
			out.WriteString(table)
			continue
		case "meta":
			out.WriteString(metaTable(table))
			continue
		case "clock":
			out.WriteString(d.Clock)
			continue
		}
		arg := argNumber(name)
		place := -1
		for i, a := range s.args {
			if a == arg && !d.Repeats {
				place = i
			}
		}
		if place < 0 {
			s.args = append(s.args, arg)
			place = len(s.args) - 1
		}
		out.WriteString(d.Placeholder(place + 1))
	}
	s.sql = out.String()
	return s
}

func argNumber(name string) int {
	for i, n := range argNames {
		if n == name {
			return i
		}
	}
	panic(fmt.Sprintf("sqlstore: {%s} is no argument", name))
}

// values returns the arguments to send.
func (s *statement) values(a *args) []any {
	values := make([]any, len(s.args))
	for i, n := range s.args {
		values[i] = a[n]
	}
	return values
}

// Question is the Placeholder of databases that write ?.
func Question(int) string { return "?" }

// Dollar is the Placeholder of databases that write $1.
func Dollar(n int) string { return "$" + strconv.Itoa(n) }

// QuestionNumber is the Placeholder of databases that write ?1.
func QuestionNumber(n int) string { return "?" + strconv.Itoa(n) }

// metaTable is the table beside the one with the records. It has a row "schema" with the version of the schema, and a
// row "sweep" with who removes expired rows, and until when.
func metaTable(table string) string { return table + "_meta" }
