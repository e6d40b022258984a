package testfault

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// session is one session and all that its visitors know of it. Every state that it is given has a number of its own, so
// that what a store answers tells which write it is of.
type session struct {
	mu sync.Mutex // held for the length of a visit: each session has one visitor at a time

	// mu guards the fields below.
	id      driver.ID
	created time.Time
	phase   phase

	// Compare-and-set writes the whole record and its number. What was acknowledged or read is in seen, in order.
	tried   int
	seen    []state
	undone  []span // of numbers that a failover has undone
	pending bool   // a write that was not acknowledged may still arrive, or may have

	// Merges write one field, which has a number of its own.
	triedMerge int
	merged     []int // merges that were acknowledged, in order
	unsure     []int // merges that were not, and may still arrive, or may have

	lastRead   driver.Record
	endedAcked bool // its Delete was acknowledged; otherwise it was found to be gone after one that was not
	revived    bool
}

type phase int

const (
	fresh     phase = iota // nothing was sent
	live                   // a create was acknowledged, or its record seen
	doubtful               // a create was not acknowledged: it may happen yet, or never
	ending                 // a delete was not acknowledged
	ended                  // a delete was acknowledged, or had its effect
	forgotten              // it was found missing, and counted
)

// state is a write.
type state struct {
	n     int
	acked bool // or only read
}

// span is from and to, both included.
type span struct{ from, to int }

func newSession() *session {
	x := &session{created: now()}
	_, _ = rand.Read(x.id[:]) // never fails
	return x
}

func now() time.Time { return time.UnixMilli(time.Now().UnixMilli()) }

const (
	idField    = "id"
	firstField = "n"
	fillField  = "fill"
	lastField  = "end"
	mergeField = "merged"
	lifetime   = time.Hour
)

func (x *session) user() string { return "user " + x.id.Hex() }

// first returns the record to create.
func (x *session) first() driver.Record {
	x.tried++
	r := driver.Record{User: x.user(), Created: x.created, Seen: x.created, Expires: x.created.Add(lifetime), Revision: driver.NewRevision(0)}
	r.Fields = r.Fields.With(driver.Change{Name: idField, Value: []byte(x.id.Hex())}).With(x.numbered(x.tried)...)
	return r
}

// next returns the record that replaces rec.
func (x *session) next(rec driver.Record) driver.Record {
	x.tried++
	rec.Fields = rec.Fields.With(x.numbered(x.tried)...)
	return later(rec)
}

// later gives rec a new revision and extends it.
func later(rec driver.Record) driver.Record {
	rec.Revision = driver.NewRevision(rec.Revision)
	if t := now(); t.After(rec.Seen) {
		rec.Seen, rec.Expires = t, t.Add(lifetime)
	}
	return rec
}

// numbered returns the changes for number n. It stands at both ends of a filler that only this session has, of a length
// that only this number has; one in sixteen is longer than a network packet.
func (x *session) numbered(n int) []driver.Change {
	v := []byte(strconv.Itoa(n))
	return []driver.Change{{Name: firstField, Value: v}, {Name: fillField, Value: x.fill(n)}, {Name: lastField, Value: v}}
}

func (x *session) fill(n int) []byte {
	repeat := 5 + n%40
	if n%16 == 7 {
		repeat *= 30
	}
	return bytes.Repeat([]byte(x.id.Hex()[:16]+strconv.Itoa(n)+";"), repeat)
}

func (x *session) merge() []driver.Change {
	x.triedMerge++
	return []driver.Change{{Name: mergeField, Value: []byte(x.id.Hex()[:16] + ":" + strconv.Itoa(x.triedMerge))}}
}

// read returns the numbers that a record has, or what is wrong with it: another's, half of one, or one that nobody wrote.
func (x *session) read(rec driver.Record) (n, merged int, wrong string) {
	get := func(name string) string { v, _ := rec.Fields.Get(name); return string(v) }
	if rec.User != x.user() || get(idField) != x.id.Hex() {
		return 0, 0, fmt.Sprintf("session %s is shown the record of %.13q with the fields of %.8s", x.id, rec.User, get(idField))
	}
	n, err := strconv.Atoi(get(firstField))
	if err != nil || n < 1 || n > x.tried {
		return 0, 0, fmt.Sprintf("session %s is shown state %q, %d were written", x.id, get(firstField), x.tried)
	}
	if get(lastField) != get(firstField) || get(fillField) != string(x.fill(n)) || !rec.Created.Equal(x.created) || rec.Expired(time.Now()) {
		return 0, 0, fmt.Sprintf("session %s is shown half a record: begins with %s, ends with %s, filler of %d bytes, created %v",
			x.id, get(firstField), get(lastField), len(get(fillField)), rec.Created)
	}
	if v := get(mergeField); v != "" {
		prefix := x.id.Hex()[:16] + ":"
		merged, err = strconv.Atoi(v[min(len(prefix), len(v)):])
		if err != nil || v[:len(prefix)] != prefix || merged < 1 || merged > x.triedMerge {
			return 0, 0, fmt.Sprintf("session %s is shown a merge %q, %d were tried", x.id, v, x.triedMerge)
		}
	}
	return n, merged, ""
}

// last returns the last state that was acknowledged or read; 0: none.
func (x *session) last() int {
	if len(x.seen) == 0 {
		return 0
	}
	return x.seen[len(x.seen)-1].n
}

// saw notes that state n was acknowledged or read. It returns how many acknowledged states after n that undoes, how many
// that were only read, and what is wrong with n, if a state comes back that was undone before.
func (x *session) saw(n int, acked bool) (lost, unread int, wrong string) {
	for _, s := range x.undone {
		if s.from <= n && n <= s.to {
			return 0, 0, fmt.Sprintf("session %s is shown state %d, which was undone before: two servers answer", x.id, n)
		}
	}
	switch last := x.last(); {
	case n > last:
		x.seen = append(x.seen, state{n, acked})
	case n < last:
		x.seen = slices.DeleteFunc(x.seen, func(s state) bool {
			if s.n <= n {
				return false
			}
			if s.acked {
				lost++
			} else {
				unread++
			}
			return true
		})
		if x.last() != n {
			x.seen = append(x.seen, state{n, false})
		}
		x.undone = append(x.undone, span{n + 1, x.tried})
	}
	return lost, unread, ""
}

// sawMerge notes that merge m is what a record shows; 0: none. It returns how many acknowledged ones after it that undoes.
func (x *session) sawMerge(m int) (lost int) {
	if slices.Contains(x.unsure, m) {
		return 0
	}
	keep := len(x.merged)
	for keep > 0 && x.merged[keep-1] > m {
		keep--
	}
	lost = len(x.merged) - keep
	x.merged = x.merged[:keep]
	return lost
}
