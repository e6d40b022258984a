package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	sessions "github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store"
)

type statCmd struct {
	URL  string `arg:"" name:"url" help:"The store: ${stores}."`
	List bool   `help:"Read every record, and tell sessions, user records and markers apart."`
	output
}

func (statCmd) Help() string {
	return `Says what kind of store it is, how many records it keeps and how many bytes they take. A store that cannot count by itself
is counted by listing it. --list lists it in any case, and says how many sessions are logged in, how large they are, and
when they expire.

Examples:

  holdfast store stat redis://localhost:6379
  holdfast store stat --list 'mysql://app@db1/shop' -o json`
}

// stat is what store stat prints.
type stat struct {
	Store   string      `json:"store"`
	Kind    string      `json:"kind"`
	Shared  bool        `json:"shared"`
	Durable string      `json:"durable"`
	Evicts  bool        `json:"evicts"`
	Records *int64      `json:"records,omitempty"`
	Expired *int64      `json:"expired,omitempty"`
	Bytes   *int64      `json:"bytes,omitempty"`
	Facts   []statFact  `json:"facts,omitempty"`
	Listed  *statListed `json:"listed,omitempty"`
}

type statFact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// statListed is what listing tells.
type statListed struct {
	LoggedIn  int          `json:"logged_in"`
	Anonymous int          `json:"anonymous"`
	Users     int          `json:"user_records"`
	Markers   int          `json:"markers"`
	Bytes     int64        `json:"bytes"`     // of all records, encoded
	BytesP50  int          `json:"bytes_p50"` // of sessions
	BytesMax  int          `json:"bytes_max"` // likewise
	ExpireIn  []statExpire `json:"expire_in"` // of sessions
	sizes     []int32      `json:"-"`
}

type statExpire struct {
	Within   string `json:"within"`
	Sessions int    `json:"sessions"`
}

var statWithin = []struct {
	name string
	d    time.Duration
}{
	{"5 minutes", 5 * time.Minute}, {"1 hour", time.Hour}, {"1 day", 24 * time.Hour}, {"30 days", 30 * 24 * time.Hour}, {"later", 1<<63 - 1},
}

func (c statCmd) Run(ctx context.Context) error {
	s, err := openExisting(ctx, "stat", c.URL)
	if err != nil {
		return err
	}
	defer s.Close()
	d := describe(s)
	out := stat{Store: store.Name(c.URL), Kind: d.Name, Shared: d.Shared, Durable: d.Durable, Evicts: d.Evicts}
	stater, counts := s.(driver.Stater)
	lister, lists := s.(driver.Lister)
	total := int64(-1)
	if counts {
		st, err := stater.Stat(ctx)
		if err != nil {
			return fmt.Errorf("store stat: %w", err)
		}
		out.Records, out.Expired, out.Bytes = known(st.Records), known(st.Expired), known(st.Bytes)
		for _, f := range st.Facts {
			out.Facts = append(out.Facts, statFact(f))
		}
		total = st.Records
	}
	switch {
	case c.List && !lists:
		return fmt.Errorf("store stat: %s cannot list what it keeps: leave out --list", d.Name)
	case !counts && !lists:
		return fmt.Errorf("store stat: %s can neither count nor list what it keeps", d.Name)
	case c.List || !counts || out.Records == nil && lists:
		if out.Listed, err = listStat(ctx, lister, total); err != nil {
			return fmt.Errorf("store stat: %w", err)
		}
		l := out.Listed
		if out.Records == nil {
			out.Records = known(int64(l.LoggedIn + l.Anonymous + l.Users + l.Markers))
		}
		if out.Bytes == nil {
			out.Bytes = known(l.Bytes)
		}
	}
	if c.json() {
		return printJSON(os.Stdout, out)
	}
	return out.print()
}

func known(n int64) *int64 {
	if n < 0 {
		return nil
	}
	return &n
}

func listStat(ctx context.Context, lister driver.Lister, total int64) (*statListed, error) {
	l := &statListed{}
	for _, w := range statWithin {
		l.ExpireIn = append(l.ExpireIn, statExpire{Within: w.name})
	}
	p := newProgress("listed")
	defer p.end()
	n := int64(0)
	for item, err := range lister.List(ctx) {
		if err != nil {
			return nil, err
		}
		l.add(item)
		n++
		p.set(n, total, "")
	}
	slices.Sort(l.sizes)
	if len(l.sizes) > 0 {
		l.BytesP50, l.BytesMax = int(l.sizes[len(l.sizes)/2]), int(l.sizes[len(l.sizes)-1])
	}
	return l, nil
}

func (l *statListed) add(item driver.Item) {
	rec := item.Record
	size := rec.EncodedLen()
	l.Bytes += int64(size)
	switch {
	case rec.Created.IsZero():
		l.Markers++
		return
	case rec.User == "":
		l.Anonymous++
	case sessions.UserID(rec.User) == item.ID:
		l.Users++
		return
	default:
		l.LoggedIn++
	}
	l.sizes = append(l.sizes, int32(min(size, 1<<31-1)))
	left := time.Until(rec.Expires)
	for i, w := range statWithin {
		if left <= w.d {
			l.ExpireIn[i].Sessions++
			return
		}
	}
}

func (s stat) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	number := func(name string, n *int64) {
		if n != nil {
			row(name, *n)
		}
	}
	row("store", s.Store)
	row("kind", s.Kind)
	row("durable", s.Durable)
	number("records", s.Records)
	number("expired, not yet removed", s.Expired)
	number("bytes", s.Bytes)
	for _, f := range s.Facts {
		row(f.Name, f.Value)
	}
	if l := s.Listed; l != nil {
		row("sessions, logged in", l.LoggedIn)
		row("sessions, anonymous", l.Anonymous)
		row("user records", l.Users)
		row("markers", l.Markers)
		row("bytes of a session", fmt.Sprintf("p50 %d, at most %d", l.BytesP50, l.BytesMax))
		for _, e := range l.ExpireIn {
			name := "expire within " + e.Within
			if e.Within == "later" {
				name = "expire later"
			}
			row(name, e.Sessions)
		}
	}
	return w.Flush()
}
