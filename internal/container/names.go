package container

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"

	"github.com/onggi/onggi/internal/errdefs"
)

// newID returns 64 hexadecimal digits of which the first twelve are not all
// decimal, so that a short ID is never taken for a number by a shell or a host
// name parser.
func newID() string {
	b := make([]byte, 32)
	for {
		rand.Read(b)
		id := hex.EncodeToString(b)
		for _, c := range id[:12] {
			if c > '9' {
				return id
			}
		}
	}
}

var (
	nameFirst = [...]string{
		"amber", "ample", "autumn", "bold", "brave", "breezy", "bright", "brisk", "calm", "careful", "cheery", "clear", "clever", "cosy", "crisp", "daring",
		"dewy", "eager", "early", "earnest", "fair", "fond", "frosty", "gentle", "glad", "golden", "grand", "hardy", "hasty", "hearty", "humble", "jolly",
		"keen", "kind", "lively", "lucid", "lucky", "mellow", "merry", "mild", "misty", "modest", "neat", "nimble", "noble", "patient", "plucky", "polite",
		"proud", "quick", "quiet", "rosy", "serene", "sharp", "silent", "sincere", "smooth", "snug", "steady", "sunny", "swift", "tidy", "warm", "witty",
	}
	nameLast = [...]string{
		"anchovy", "barley", "basil", "bean", "brine", "buchu", "cabbage", "carrot", "chestnut", "chilli", "clay", "crock", "cucumber", "daikon", "dolsot", "fern",
		"garlic", "ginger", "ginseng", "gochu", "harvest", "hearth", "jang", "jar", "jujube", "kettle", "kiln", "kimchi", "ladle", "lotus", "malt", "meju",
		"millet", "mugwort", "mustard", "onion", "pear", "pepper", "perilla", "persimmon", "pine", "plum", "potter", "pumpkin", "radish", "rice", "salt", "scallion",
		"seaweed", "sesame", "shrimp", "soy", "spinach", "sprout", "squash", "straw", "sujeo", "tofu", "turnip", "walnut", "wasabi", "wheat", "yuja", "yuzu",
	}
)

// newName proposes a name; after the first attempts it adds a number, because
// two words are soon used up.
func newName(attempt int) string {
	n := nameFirst[pick(len(nameFirst))] + "_" + nameLast[pick(len(nameLast))]
	if attempt > 1 {
		n += big.NewInt(int64(pick(10 * attempt * attempt))).String()
	}
	return n
}

func pick(n int) int {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		return 0
	}
	return int(i.Int64())
}

// maxName bounds names; they become host names and record keys.
const maxName = 255

// ValidName holds Docker's rule: [a-zA-Z0-9][a-zA-Z0-9_.-]+.
func ValidName(name string) bool {
	ok := len(name) >= 2 && len(name) <= maxName && isAlnum(name[0])
	for i := 1; ok && i < len(name); i++ {
		c := name[i]
		ok = isAlnum(c) || c == '_' || c == '.' || c == '-'
	}
	return ok
}

func checkName(op, name string) error {
	if !ValidName(name) {
		return errdefs.WithHint(errdefs.Newf(errdefs.Invalid, op, quote("container", clip(name)), "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", clip(name)),
			"use at least two letters, digits, '_', '.' or '-', starting with a letter or digit")
	}
	return nil
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// clip keeps a hostile name from filling an error message.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

func quote(noun, name string) string { return noun + ` "` + name + `"` }
