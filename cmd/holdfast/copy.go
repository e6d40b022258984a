package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/storeurl"
	"github.com/holdfast-sessions/holdfast/store"
	"github.com/holdfast-sessions/holdfast/store/transfer"
)

// errPartly marks errors of commands that have done their work but for some of it: exit status 3.
var errPartly = errors.New("partly done")

type copyCmd struct {
	From     string        `arg:"" help:"The store to read: ${stores}."`
	To       string        `arg:"" help:"The store to write."`
	Journal  string        `placeholder:"FILE" help:"What was copied, for the next run. Default: holdfast-copy- and 8 characters made from the two URLs, in the current directory."`
	Parallel int           `default:"16" help:"Records to work on at once, 1 to 256 (${default})."`
	Rate     int           `default:"0" help:"Writes to TO in a second, at most. 0: no limit."`
	Passes   int           `default:"10" help:"Passes over FROM, at most (${default})."`
	Follow   bool          `help:"Go on copying what changes until interrupted."`
	Every    time.Duration `default:"1s" help:"Pause between passes with --follow (${default})."`
	EndMany  bool          `help:"End in TO what is gone from FROM even if that is most of it."`
	output
}

func (copyCmd) Help() string {
	return `Copies every session of FROM to TO, byte for byte, while applications use both, then what changed meanwhile, until a pass finds
nothing new. What was ended in FROM since it was copied is ended in TO; what was ended or changed in TO stays so. FROM is not
changed.

It can be interrupted, or killed, at any moment: the same command goes on where it was, by what the journal remembers, and
ends in TO what was ended in FROM between the two. The journal also serves the way back, FROM and TO exchanged. Remove it
when the move is over.

To move a site: run copy; run it again with --follow; switch the applications to TO, one after the other; interrupt it when
none uses FROM any more. As long as both are in use, log users out by force in both.

Exits with 3 if some records could not be copied.

Examples:

  holdfast store copy redis://localhost:6379 'postgres://app@db1/shop'
  holdfast store copy --follow redis://localhost:6379 'postgres://app@db1/shop'
  holdfast store copy --rate 2000 --journal /var/tmp/move.journal file:/var/lib/shop/sessions redis://localhost:6379`
}

func (c copyCmd) Run(ctx context.Context) error {
	for _, raw := range []string{c.From, c.To} {
		if schemeOf(raw) == "memory" {
			return fmt.Errorf("store copy: memory: %w: it is in one process's memory, and this is another process", errUsage)
		}
	}
	if c.Parallel < 1 || c.Parallel > 256 || c.Rate < 0 || c.Passes < 1 || c.Every <= 0 {
		return fmt.Errorf("store copy: --parallel 1 to 256, --rate 0 or more, --passes 1 or more, --every more than 0: others %w", errUsage)
	}
	from, err := openExisting(ctx, "copy", c.From)
	if err != nil {
		return err
	}
	defer from.Close()
	opening, cancel := context.WithTimeout(ctx, 10*time.Second)
	to, err := store.Open(opening, c.To)
	cancel()
	if err != nil {
		return err
	}
	defer to.Close()

	names := []string{identity(c.From), identity(c.To)}
	if names[0] == names[1] {
		return fmt.Errorf("store copy: FROM and TO are one store: that %w", errUsage)
	}
	if c.Journal == "" {
		c.Journal = journalName(names)
	}
	journal, err := transfer.OpenJournal(c.Journal, names[0], names[1])
	if err != nil {
		return fmt.Errorf("store copy: journal: %w (choose another with --journal)", err)
	}
	defer journal.Close()

	p := newProgress("pass 1")
	began := time.Now()
	r, err := transfer.Run(ctx, from, to, transfer.Config{
		Journal: journal, Parallel: c.Parallel, Rate: c.Rate, Passes: c.Passes, Follow: c.Follow, Every: c.Every, EndMany: c.EndMany,
		Progress: func(now transfer.Progress) {
			p.show(fmt.Sprintf("pass %d", now.Pass), now.Listed, now.Total, fmt.Sprintf("%d written", now.Result.Writes))
		},
	})
	p.end()
	switch {
	case errors.Is(err, transfer.ErrSame):
		return fmt.Errorf("store copy: FROM and TO are one store: that %w", errUsage)
	case errors.Is(err, transfer.ErrCannotList):
		return fmt.Errorf("store copy: %s %w, so that nothing can be copied from it", describe(from).Name, transfer.ErrCannotList)
	case errors.Is(err, transfer.ErrVanished):
		err = fmt.Errorf("%w; if its sessions were ended on purpose, add --end-many", err)
	}
	printed := c.print(r, time.Since(began), err == nil || ctx.Err() != nil)
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintf(os.Stderr, "the same command goes on from here, by %s\n", c.Journal)
		return err
	case err != nil:
		return fmt.Errorf("store copy: %w", err)
	case printed != nil:
		return printed
	case r.Failed > 0:
		return fmt.Errorf("store copy: %w: %d of %d records could not be copied", errPartly, r.Failed, r.Met)
	}
	return nil
}

// copyReport is what -o json prints.
type copyReport struct {
	From       string        `json:"from"`
	To         string        `json:"to"`
	Settled    bool          `json:"settled"` // the last pass found nothing new
	Passes     int           `json:"passes"`
	Records    int           `json:"records"` // sum of the eight below
	Copied     int           `json:"copied"`
	Skipped    int           `json:"skipped"`
	Removed    int           `json:"removed"`
	EndedThere int           `json:"ended_there"`
	Kept       int           `json:"kept"`
	Expired    int           `json:"expired"`
	Unlisted   int           `json:"unlisted"`
	Failed     int           `json:"failed"`
	Diverged   int           `json:"diverged"`
	Writes     int           `json:"writes"`
	Seconds    float64       `json:"seconds"`
	Journal    string        `json:"journal"`
	Failures   []copyFailure `json:"failures,omitempty"`
}

type copyFailure struct {
	Record string `json:"record"`
	Error  string `json:"error"`
}

func (c copyCmd) print(r transfer.Result, took time.Duration, talk bool) error {
	report := copyReport{
		From: store.Name(c.From), To: store.Name(c.To), Settled: r.Settled, Passes: r.Passes, Records: r.Met, Copied: r.Copied,
		Skipped: r.Same, Removed: r.Ended, EndedThere: r.EndedThere, Kept: r.Kept, Expired: r.Expired, Unlisted: r.Unlisted,
		Failed: r.Failed, Diverged: r.Diverged, Writes: r.Writes, Seconds: took.Round(time.Millisecond).Seconds(), Journal: c.Journal,
	}
	for _, f := range r.Failures {
		report.Failures = append(report.Failures, copyFailure{f.ID.String(), f.Err.Error()})
	}
	if c.json() {
		return printJSON(os.Stdout, report)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s\n\n%7d records, passes: %d, %v\n", report.From, report.To, r.Met, r.Passes, took.Round(100*time.Millisecond))
	for _, row := range []struct {
		n      int
		says   string
		always bool
	}{
		{r.Copied, "copied", true},
		{r.Same, "skipped: the same, or newer, in TO", true},
		{r.Ended, "removed: ended in FROM, and therefore in TO", true},
		{r.Expired, "expired before they were copied", true},
		{r.EndedThere, "ended in TO since they were copied, and not brought back", false},
		{r.Kept, "changed in TO since they were copied, and left as they are there", false},
		{r.Unlisted, "not listed for their users: logins or logouts under way", false},
		{r.Failed, "failed", true},
	} {
		if row.n > 0 || row.always {
			fmt.Fprintf(&b, "%7d %s\n", row.n, row.says)
		}
	}
	for _, f := range report.Failures {
		fmt.Fprintf(&b, "        %s: %s\n", f.Record, f.Error)
	}
	if r.Diverged > 0 {
		fmt.Fprintf(&b, "\n%d were changed in both stores; the later state was kept.\n", r.Diverged)
	}
	if talk {
		if r.Settled {
			fmt.Fprintf(&b, "\nThe last pass found nothing new.")
		} else {
			fmt.Fprintf(&b, "\nFROM was still changing: run it again, or with --follow.")
		}
		fmt.Fprintf(&b, " The journal is %s; remove it when the move is over.\n", c.Journal)
	}
	_, err := os.Stdout.WriteString(b.String())
	return err
}

// identity is what tells a store from others, without passwords: it stands in the journal.
func identity(rawURL string) string {
	scheme := schemeOf(rawURL)
	_, query, _ := strings.Cut(rawURL, "?")
	base := store.Name(rawURL)
	if path := pathOf(rawURL); path != "" {
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		base = scheme + ":" + path
	} else if u, err := storeurl.Parse(rawURL); err == nil {
		slices.Sort(u.Hosts)
		// One server has several schemes.
		scheme = strings.NewReplacer("rediss", "redis", "mariadb", "mysql", "postgresql", "postgres").Replace(scheme)
		base = scheme + "://" + strings.Join(u.Hosts, ",") + strings.TrimRight(u.Path, "/")
	}
	// store.Open has refused a query that cannot be parsed.
	q, _ := url.ParseQuery(query)
	kept := url.Values{}
	for _, name := range []string{"prefix", "table", "master", "db"} {
		if q.Has(name) {
			kept.Set(name, q.Get(name))
		}
	}
	if len(kept) > 0 {
		base += "?" + kept.Encode()
	}
	return base
}

// journalName is the same in both directions.
func journalName(names []string) string {
	sum := sha256.Sum256([]byte(min(names[0], names[1]) + "\n" + max(names[0], names[1])))
	return "holdfast-copy-" + hex.EncodeToString(sum[:4]) + ".journal"
}
