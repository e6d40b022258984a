package sealtest_test

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed"
	"github.com/holdfast-sessions/holdfast/sealed/sealtest"
)

// reference is a plain sealer, which can have one bug. A token is the base64url of: ID of the key, a byte that is 0, and what the
// key's AEAD makes of an ID and driver.Encode of a record.
type reference struct {
	bug      string
	keys     *keyring.Ring
	settings sealtest.Settings
	max      int

	mu sync.Mutex // mu guards the fields below

	buffer []byte            // of all calls, with the bugs that share or keep one
	kept   map[string]string // by the bugs that remember
	// expires is when the record that was sealed last does.
	expires time.Time
}

const head = 5

// newReference returns what makes sealers with a bug, or with none.
func newReference(bug string) sealtest.New {
	return func(keys *keyring.Ring, s sealtest.Settings) (driver.Sealer, error) {
		r := &reference{bug: bug, keys: keys, settings: s, kept: make(map[string]string)}
		if keys == nil && bug == "works without keys" {
			r.keys = keyring.New(keyring.NewSet())
		} else if keys == nil {
			return nil, fmt.Errorf("no keys")
		}
		var err error
		if r.max, err = sealed.MaxBytes(s.MaxBytes); err != nil && bug != "takes any MaxBytes" {
			return nil, err
		} else if err != nil {
			r.max = s.MaxBytes
		}
		if bug == "prints its settings" {
			return talkative{r}, nil
		}
		return r, nil
	}
}

func (r *reference) has(bug string) bool { return r.bug == bug }

func (r *reference) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[reference sealer]") }

// talkative is a reference that prints as fmt likes.
type talkative struct{ r *reference }

func (t talkative) Seal(b string, id driver.ID, rec driver.Record) (string, error) {
	return t.r.Seal(b, id, rec)
}
func (t talkative) Open(b, token string) (driver.Opened, error) { return t.r.Open(b, token) }
func (t talkative) Describe() driver.Description                { return t.r.Describe() }
func (t talkative) String() string {
	return fmt.Sprintf("%x", t.r.keys.Active().Derive("reference", 32)) + " sealer]"
}

func (r *reference) Describe() driver.Description {
	d := driver.Description{Name: "reference", Shared: true, Immediate: true, MaxBytes: r.max}
	switch r.bug {
	case "has no name":
		d.Name = ""
	case "says that it is not shared":
		d.Shared = false
	case "states no limit":
		d.MaxBytes = 0
	case "states another limit":
		d.MaxBytes = sealed.LimitBytes
	}
	return d
}

// associated is what a token is bound to.
func (r *reference) associated(head []byte, binding string) []byte {
	s := r.settings
	parts := []string{string(head), s.Application, s.Purpose, binding}
	switch r.bug {
	case "does not authenticate its head":
		parts[0] = ""
	case "ignores the application":
		parts[1] = ""
	case "ignores the purpose":
		parts[2] = ""
	case "ignores the binding":
		parts[3] = ""
	case "ignores the tenant":
		parts[3], _, _ = strings.Cut(binding, "\x00")
	case "joins application and purpose":
		parts = []string{string(head), s.Application + s.Purpose, binding}
	case "is bound to MaxBytes":
		parts = append(parts, fmt.Sprint(r.max))
	}
	var b []byte
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return b
}

func (r *reference) Seal(binding string, id driver.ID, rec driver.Record) (string, error) {
	switch r.bug {
	case "keeps times to the second":
		rec.Created = rec.Created.Truncate(time.Second)
	case "rounds revisions":
		rec.Revision = uint64(float64(rec.Revision))
	case "trims users":
		rec.User = strings.TrimSpace(rec.User)
	case "drops the user":
		rec.User = ""
	case "cuts IDs":
		clear(id[8:])
	case "drops fields of its own":
		for name := range rec.Fields.All() {
			if strings.HasPrefix(name, "\x00") {
				rec.Fields = rec.Fields.With(driver.Change{Name: name, Delete: true})
			}
		}
	case "cuts users":
		rec.User = rec.User[:min(len(rec.User), 255)]
	}
	encoded, err := driver.Encode(rec)
	if err != nil {
		return "", err
	}
	plain := append(id[:], encoded...)
	if r.has("changes what it was given") {
		clear(rec.Fields.Bytes())
	}
	if r.has("shares a buffer") {
		plain = r.share(plain)
	}
	if r.has("compresses") {
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, flate.BestCompression) // a level that there is
		_, _ = w.Write(plain)                              // never fails
		_ = w.Close()
		plain = b.Bytes()
	}
	key := r.keys.Active()
	if r.has("seals with a key that waits") {
		for _, k := range r.keys.Keys() {
			if k.State() == keyring.Waiting {
				key = k
			}
		}
	}
	h := append(binary.BigEndian.AppendUint32(nil, key.ID()), 0)
	envelope := append(h, key.AEAD("reference").Seal(nil, plain, r.associated(h, binding))...)
	if r.has("does not authenticate") {
		sum := sha256.Sum256(h)
		envelope = append(append(h, sum[:]...), plain...)
	}
	if r.has("announces its length") {
		envelope = append(binary.BigEndian.AppendUint32(nil, uint32(len(envelope))), envelope...)
	}
	token := base64.RawURLEncoding.EncodeToString(envelope)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expires = rec.Expires
	switch r.bug {
	case "checks a part of it first":
		r.kept[string(envelope[:len(envelope)*3/4])] = ""
	case "pads":
		token = base64.URLEncoding.EncodeToString(envelope)
	case "uses the standard alphabet":
		token = base64.RawStdEncoding.EncodeToString(envelope)
	case "ends with a dot":
		token += "."
	case "keeps what it sealed":
		short := fmt.Sprintf("%x", sha256.Sum256([]byte(token)))
		r.kept[short] = token
		return short, nil
	}
	if len(token) > r.max {
		switch r.bug {
		case "has no limit":
		case "returns a part of what is too large":
			return token[:r.max], nil
		case "returns the token that is too large":
			return token, driver.ErrTooLarge
		case "says another error for what is too large":
			return "", driver.ErrConflict
		default:
			return "", driver.ErrTooLarge
		}
	}
	if r.has("has a smaller limit than it says") && len(token) > r.max-100 {
		return "", driver.ErrTooLarge
	}
	return token, nil
}

func (r *reference) Open(binding, token string) (driver.Opened, error) {
	if len(token) > sealed.LimitBytes {
		return driver.Opened{}, driver.ErrTampered
	}
	if r.has("keeps what it sealed") {
		r.mu.Lock()
		defer r.mu.Unlock()
		token = r.kept[token]
	}
	if r.has("looks at the expiry first") && !time.Now().Before(r.expires) { // by one goroutine
		return driver.Opened{}, driver.ErrGone
	}
	encoding := base64.RawURLEncoding.Strict()
	switch r.bug {
	case "ignores line breaks", "ignores bits left over":
		encoding = base64.RawURLEncoding
	case "uses the standard alphabet":
		encoding = base64.RawStdEncoding
	case "reads the standard alphabet too":
		token = strings.NewReplacer("+", "-", "/", "_").Replace(token)
	case "ignores padding":
		token = strings.TrimRight(token, "=")
	case "ignores white space around it":
		token = strings.TrimSpace(token)
	case "ignores what follows a dot", "ends with a dot":
		token, _, _ = strings.Cut(token, ".")
	}
	if strings.ContainsAny(token, "\r\n") && !r.has("ignores line breaks") {
		return driver.Opened{}, driver.ErrTampered
	}
	envelope, err := encoding.DecodeString(token)
	if r.has("announces its length") && err == nil && len(envelope) > 4 {
		b := make([]byte, 1<<20|binary.BigEndian.Uint32(envelope)&(64<<20-1))
		envelope = b[:copy(b, envelope[4:])]
	}
	if err != nil || len(envelope) < head && !r.has("panics") {
		return driver.Opened{}, driver.ErrTampered
	}
	h := envelope[:head:head]
	key, stale, err := sealed.Find(r.keys, binary.BigEndian.Uint32(h))
	switch r.bug {
	case "says that new tokens are stale":
		stale = true
	case "says that no token is stale":
		stale = false
	case "makes tokens of a waiting key anew":
		stale = stale || key.State() == keyring.Waiting
	case "refuses a waiting key":
		if key.State() == keyring.Waiting {
			return driver.Opened{}, driver.ErrTampered
		}
	case "refuses a former key":
		if stale {
			return driver.Opened{}, driver.ErrTampered
		}
	case "says that an unknown key is tampering":
		if err != nil {
			return driver.Opened{}, driver.ErrTampered
		}
	case "says that a retired key is unknown":
		if err != nil {
			return driver.Opened{}, driver.ErrForeignSeal
		}
	case "tries the active key":
		if err != nil {
			key, err = r.keys.Active(), nil
		}
	case "says not found":
		if err != nil {
			return driver.Opened{}, driver.ErrNotFound
		}
	}
	if err != nil {
		return driver.Opened{}, err
	}
	plain, err := key.AEAD("reference").Open(nil, envelope[head:], r.associated(h, binding))
	if r.has("checks a part of it first") && r.sealedPart(envelope) {
		_, _ = key.AEAD("reference").Open(nil, envelope[head:], r.associated(h, binding)) // takes its time
	}
	if r.has("does not authenticate") && len(envelope) >= head+sha256.Size {
		plain, err = envelope[head+sha256.Size:], nil
	}
	if err != nil {
		if r.has("says where it went wrong") {
			return driver.Opened{}, fmt.Errorf("%w: at %d", driver.ErrTampered, envelope[len(envelope)/2])
		}
		if r.has("returns what it could not verify") {
			return driver.Opened{ID: driver.ID{1}}, driver.ErrTampered
		}
		if r.has("says another error for what is forged") {
			return driver.Opened{}, fmt.Errorf("cannot be decrypted")
		}
		return driver.Opened{}, driver.ErrTampered
	}
	if r.has("compresses") {
		if plain, err = io.ReadAll(flate.NewReader(bytes.NewReader(plain))); err != nil {
			return driver.Opened{}, driver.ErrTampered
		}
	}
	if r.has("keeps its buffer") {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.buffer = append(r.buffer[:0], plain...)
		plain = r.buffer
	}
	o := driver.Opened{Stale: stale}
	if len(plain) < len(o.ID) {
		return driver.Opened{}, driver.ErrTampered
	}
	copy(o.ID[:], plain)
	if o.Record, err = driver.Decode(plain[len(o.ID):]); err != nil {
		return driver.Opened{}, driver.ErrTampered
	}
	now := time.Now()
	switch r.bug {
	case "opens what expired":
		return o, nil
	case "opens for a second too long":
		now = now.Add(-time.Second)
	case "refuses 5 ms early":
		now = now.Add(5 * time.Millisecond)
	}
	switch {
	case !o.Record.Expired(now):
		return o, nil
	case r.has("says that what expired is tampered"):
		return driver.Opened{}, driver.ErrTampered
	case r.has("returns nothing of what expired"):
		return driver.Opened{}, driver.ErrGone
	}
	return o, driver.ErrGone
}

// share passes b through a buffer that all calls use, one after the other: each step is locked, not all of them together.
func (r *reference) share(b []byte) []byte {
	r.mu.Lock()
	r.buffer = append(r.buffer[:0], b...)
	r.mu.Unlock()
	runtime.Gosched()
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.buffer)
}

// sealedPart reports whether the first three quarters of an envelope are those of one that was sealed, as if they had a tag of their own.
func (r *reference) sealedPart(envelope []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.kept[string(envelope[:len(envelope)*3/4])]
	return ok
}
