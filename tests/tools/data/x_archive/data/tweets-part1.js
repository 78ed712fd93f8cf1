window.YTD.tweets.part1 = [
  {
    "tweet" : {
      "entities" : { "urls" : [ ] },
      "favorite_count" : "900",
      "id_str" : "1100000000000000011",
      "retweet_count" : "120",
      "created_at" : "Mon Feb 25 11:50:11 +0000 2019",
      "full_text" : "The first bee of spring sat on my sleeve for a whole minute.",
      "lang" : "en"
    }
  }
]
