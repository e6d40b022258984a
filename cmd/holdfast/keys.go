package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdfast-sessions/holdfast/keyring"
)

// keyCmd is the commands that work with a key ring.
type keyCmd struct {
	New    keyNewCmd    `cmd:"" help:"Make a key ring, with one key."`
	LS     keyLSCmd     `cmd:"" name:"ls" help:"List the keys of a ring, without their secrets."`
	Rotate keyRotateCmd `cmd:"" help:"Add a key; later, make it the one that seals."`
	Retire keyRetireCmd `cmd:"" help:"Take keys out of use for good."`
}

// lockWait is how long a command waits for another one that changes the same file.
const lockWait = 10 * time.Second

// changeRing replaces the key ring in a file by what change returns.
func changeRing(ctx context.Context, path string, change func(*keyring.Set) (*keyring.Set, error)) (*keyring.Set, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	return keyring.Update(ctx, path, change)
}

// ringFile returns the path in the argument FILE, which may be written as a URL.
func ringFile(arg string) string {
	if _, err := os.Lstat(arg); err == nil || !strings.HasPrefix(arg, "file:") {
		return arg
	}
	return strings.TrimPrefix(strings.TrimPrefix(arg, "file:"), "//")
}

// keyList is what the commands print with -o json.
type keyList struct {
	Ring string    `json:"ring"`
	Keys []keyInfo `json:"keys"`
}

type keyInfo struct {
	ID      string    `json:"id"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	Since   time.Time `json:"since"` // in this state
}

func id(k keyring.Key) string { return fmt.Sprintf("%08x", k.ID()) }

func listKeys(ring string, set *keyring.Set) keyList {
	l := keyList{Ring: ring}
	for _, k := range set.Keys() {
		l.Keys = append(l.Keys, keyInfo{id(k), k.State().String(), k.Created(), k.Since()})
	}
	return l
}

// printKeys prints the keys in JSON, or says what was done.
func printKeys(o output, ring string, set *keyring.Set, said []string) error {
	if o.json() {
		return printJSON(os.Stdout, listKeys(ring, set))
	}
	_, err := fmt.Println(strings.Join(said, "\n"))
	return err
}

type keyNewCmd struct {
	File string `arg:"" help:"The file, which must not exist."`
	output
}

func (keyNewCmd) Help() string {
	return `Makes a file with one key, which is active, that only you can read (mode 0600). Every server needs the same file: copy it to
them as you copy passwords, and make it belong to the user that they run as.

Examples:

  holdfast key new /etc/shop/keys.json
  sudo -u shop holdfast key new /etc/shop/keys.json`
}

func (c keyNewCmd) Run() error {
	path, set := ringFile(c.File), keyring.NewSet()
	if err := keyring.Create(path, set); err != nil {
		return err
	}
	return printKeys(c.output, path, set, []string{fmt.Sprintf("key %s is active, in %s", id(set.Active()), path)})
}

type keyLSCmd struct {
	URL string `arg:"" name:"url" help:"The key ring: a file, file:/path, env:NAME or https://host/path."`
	output
}

func (keyLSCmd) Help() string {
	return `Lists the keys, the oldest first, and checks the ring as a server does when it starts. It shows no secret.

Examples:

  holdfast key ls /etc/shop/keys.json
  holdfast key ls env:SHOP_KEYS -o json`
}

func (c keyLSCmd) Run(ctx context.Context) error {
	url := c.URL
	if _, err := os.Lstat(url); err == nil || !strings.Contains(url, ":") {
		url = "file:" + escapePath(url)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	ring, err := keyring.Open(ctx, url)
	if err != nil {
		return err
	}
	defer ring.Close()
	if c.json() {
		return printJSON(os.Stdout, listKeys(ring.Source(), ring.Set()))
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tSINCE\tCREATED")
	for _, k := range ring.Set().Keys() {
		fmt.Fprintf(w, "%s\t%s\t%s (%s)\t%s\n", id(k), k.State(), k.Since().Format(time.RFC3339), ago(k.Since()), k.Created().Format(time.RFC3339))
	}
	return w.Flush()
}

// escapePath writes a path as a URL of a key ring does.
func escapePath(path string) string {
	return strings.NewReplacer("%", "%25", "?", "%3F", "#", "%23").Replace(path)
}

// ago says how long ago t was, roughly.
func ago(t time.Time) string {
	switch d := time.Since(t); {
	case d < 0:
		return "in the future: check the clocks"
	case d < 48*time.Hour:
		return d.Truncate(time.Second).String() + " ago"
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}

type keyRotateCmd struct {
	File string        `arg:"" help:"The key ring's file."`
	Wait time.Duration `default:"1h" help:"How long a key must have waited before it seals."`
	Now  bool          `env:"-" help:"Do not wait, and add a key first if none waits: a key is known to others."`
	output
}

func (keyRotateCmd) Help() string {
	return `Run it twice. The first time adds a key that waits: it opens, but seals nothing yet. Give the file to every server, if they do
not share it; they notice a changed file within 5 seconds, without a restart. The second time, after --wait, makes it the
active key, and the one before decrypt only: sessions that it sealed are sealed anew when they are used, and nobody is
logged out. Before --wait has passed it changes nothing and exits with 1. From a timer, one run adds and the next one
activates.

--now is for a key that others may know: the new one seals at once. Servers that have not got it yet take its users for
anonymous until they have; nobody is logged out for good. Then retire the old one: holdfast key retire --now FILE ID.

Examples:

  holdfast key rotate /etc/shop/keys.json
  holdfast key rotate --wait 24h /etc/shop/keys.json
  holdfast key rotate --now /etc/shop/keys.json`
}

func (c keyRotateCmd) Run(ctx context.Context) error {
	if c.Wait < 0 {
		return fmt.Errorf("%w: --wait %v: want a time such as 1h", errUsage, c.Wait)
	}
	path := ringFile(c.File)
	var said []string
	set, err := changeRing(ctx, path, func(set *keyring.Set) (*keyring.Set, error) {
		said = nil
		key, waits := firstIn(set, keyring.Waiting)
		if !waits {
			added, k, err := set.Add()
			if err != nil {
				return nil, err
			}
			set, key = added, k
			if !c.Now {
				said = append(said, fmt.Sprintf("key %s waits: give the file to every server, and run this again after %v", id(key), c.Wait))
				return set, nil
			}
		}
		if left := time.Until(key.Since().Add(c.Wait)); left > 0 && !c.Now {
			return nil, fmt.Errorf("key %s waits, for %v more, so that every server knows it: run this again then, or with --now",
				id(key), left.Round(time.Second))
		}
		was := set.Active()
		said = append(said, fmt.Sprintf("key %s is active", id(key)), fmt.Sprintf("key %s is decrypt only", id(was)))
		return set.Promote(key.ID())
	})
	if err != nil {
		return err
	}
	return printKeys(c.output, path, set, said)
}

func firstIn(set *keyring.Set, state keyring.State) (keyring.Key, bool) {
	for _, k := range set.Keys() {
		if k.State() == state {
			return k, true
		}
	}
	return keyring.Key{}, false
}

type keyRetireCmd struct {
	File      string        `arg:"" help:"The key ring's file."`
	ID        []string      `arg:"" optional:"" name:"id" help:"The keys, as holdfast key ls prints them. Default: every key that is decrypt only for --older-than."`
	OlderThan time.Duration `default:"744h" help:"How long a key must have been decrypt only: as long as your longest session."`
	Now       bool          `env:"-" help:"Retire the keys given although they may have sealed sessions that live. Those end."`
	output
}

func (keyRetireCmd) Help() string {
	return `Removes the secrets of keys, and remembers their IDs. Sessions that such a key sealed and that were not used since are ended:
so wait until the longest session, and the longest "remember me", has passed since the key was last active (--older-than,
744h are 31 days). The active key cannot be retired: rotate first. There is no way back but a backup.

Examples:

  holdfast key retire /etc/shop/keys.json
  holdfast key retire --older-than 12h /etc/shop/keys.json
  holdfast key retire --now /etc/shop/keys.json 0c7f13d2`
}

func (c keyRetireCmd) Run(ctx context.Context) error {
	switch {
	case c.Now && len(c.ID) == 0:
		return fmt.Errorf("%w: --now ends sessions: say which keys", errUsage)
	case c.OlderThan < 0:
		return fmt.Errorf("%w: --older-than %v: want a time such as 744h", errUsage, c.OlderThan)
	}
	ids := make([]uint32, len(c.ID))
	for i, s := range c.ID {
		n, err := strconv.ParseUint(s, 16, 32)
		if err != nil || len(s) != 8 {
			return fmt.Errorf("%w: %q is no key's ID: want 8 hexadecimal characters", errUsage, s)
		}
		ids[i] = uint32(n)
	}
	path := ringFile(c.File)
	var said, warnings []string
	set, err := changeRing(ctx, path, func(set *keyring.Set) (*keyring.Set, error) {
		said, warnings = nil, nil
		chosen := ids
		if len(ids) == 0 {
			for _, k := range set.Keys() {
				if k.State() == keyring.DecryptOnly && time.Since(k.Since()) > c.OlderThan {
					chosen = append(chosen, k.ID())
				}
			}
			if len(chosen) == 0 {
				said = []string{fmt.Sprintf("no key is decrypt only for more than %v: nothing to retire", c.OlderThan)}
				return set, nil
			}
		}
		for _, n := range chosen {
			key, state := set.Find(n)
			if young := time.Since(key.Since()) <= c.OlderThan; young && state == keyring.DecryptOnly {
				if !c.Now {
					return nil, fmt.Errorf("key %s was active until %s, and may have sealed sessions that live: wait until %s, or end them with --now",
						id(key), ago(key.Since()), key.Since().Add(c.OlderThan).Format(time.RFC3339))
				}
				warnings = append(warnings, fmt.Sprintf("key %s was active until %s: sessions that it sealed, and that were not used since, are ended", id(key), ago(key.Since())))
			}
			retired, err := set.Retire(n)
			if err != nil {
				return nil, err
			}
			set = retired
			said = append(said, fmt.Sprintf("key %08x is retired", n))
		}
		return set, nil
	})
	if err != nil {
		return err
	}
	for _, w := range warnings {
		complain(errors.New(w))
	}
	return printKeys(c.output, path, set, said)
}
